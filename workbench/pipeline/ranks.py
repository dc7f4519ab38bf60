"""One notebook in several processes that train together, a kernel for each rank.

Every rank executes the whole notebook in the folder of a run of its own and does its share of the work in it. Rank 0 is
the one that is shown and kept. The others begin with a copy of its folder, so that all continue from one checkpoint;
what they print goes to `rank1.log` and so on beside the run, and their folders are gone when the stage ends.
"""

import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path

from workbench import DONE
from workbench.runs.files import explain_write_errors, shown

LARGE = (".pt", ".safetensors", ".bin")  # always replaced as a whole: a second name for the file is as good as a copy
LEFT_OUT = ("notebook*", ".*", "*.log")
Run = Callable[[dict, Callable[[str], None]], tuple[int, str]]


def run_ranks(job: dict, pass_on: Callable[[str], None], *, run: Run, stop: Callable[[str], None]) -> tuple[int, str]:
    """`run` the job once for each of its processes and `stop` all by name once one fails: code, sentence of the first.

    `pass_on` gets what rank 0 prints.
    """
    folder, count, codes = Path(job["folder"]), job["processes"], {}
    with ExitStack() as open_files, own_folders(folder, count) as folders, ThreadPoolExecutor(count) as pool:
        meeting = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        running = {pool.submit(run, job | {"environment": meeting | ranked(0)}, pass_on): 0}
        for rank in range(1, count):
            log = open_files.enter_context(open(folder / f"rank{rank}.log", "w", encoding="utf-8"))
            place = {"folder": str(folders[rank]), "name": f"{job['name']} rank {rank}"}
            its = job | place | {"parameters": job["parameters"] | {"run_dir": str(folders[rank])}}
            its |= {"environment": meeting | ranked(rank)}
            running[pool.submit(run, its, lambda line, log=log: print(line, file=log, flush=True))] = rank
        for ended in as_completed(running):
            codes[running[ended]] = code, sentence = ended.result()
            if code != DONE and all(other == DONE for other, _ in list(codes.values())[:-1]):
                for name in (job["name"], *(f"{job['name']} rank {rank}" for rank in range(1, count))):
                    stop(name)
    first = next((rank for rank, (code, _) in codes.items() if code != DONE), 0)
    code, sentence = codes[first]
    if code == DONE or first == 0:
        return code, sentence
    return code, f"{sentence} (rank {first} of {count}, see {shown(folder / f'rank{first}.log')})"


def ranked(rank: int) -> dict[str, int]:
    """Environment variables that tell a process which one it is."""
    return {"RANK": rank, "LOCAL_RANK": rank}


@contextmanager
def own_folders(folder: Path, count: int) -> Iterator[list[Path]]:
    """A folder for each rank, as what the first one's holds; the others are gone after the block."""
    ranks = folder / ".ranks"
    try:
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for rank in range(1, count):
                shutil.rmtree(ranks / str(rank), ignore_errors=True)  # of a stage that was killed
                ignored = shutil.ignore_patterns(*LEFT_OUT)
                shutil.copytree(folder, ranks / str(rank), ignore=ignored, copy_function=copy_or_link)
        yield [folder, *(ranks / str(rank) for rank in range(1, count))]
    finally:
        shutil.rmtree(ranks, ignore_errors=True)


def copy_or_link(source: str, target: str) -> None:
    if Path(source).suffix in LARGE:
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
