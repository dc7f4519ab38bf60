"""Stages that run elsewhere: on any `concurrent.futures` executor, such as that of a Dask cluster.

Every machine needs the same checkout and the same folder of results, on a file system that they share. A sweep leaves a
ticket in that folder; a stage whose ticket is withdrawn stops, also where the sweep can send it no signal.
"""

import logging
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from workbench import BAD_INPUT, DONE, FAILED, STOPPED, WorkbenchError
from workbench.pipeline.schedule import SECONDS_BETWEEN_LOOKS, executed, wait_until_free
from workbench.pipeline.workers import SECONDS_TO_STOP, Processes
from workbench.runs import files

SECONDS_TO_CONNECT = 3
T = TypeVar("T")


class Elsewhere:
    """Runs stages on an executor: `Processes` for other machines."""

    def __init__(self, executor: Executor, ticket: Path):
        self.executor, self.ticket = executor, ticket
        call = ticket.read_text(encoding="utf-8")
        self.place = {"root": str(files.repository_root()), "ticket": str(ticket), "call": call}
        self.give_up_at = float("inf")

    def run_process(self, job: dict, pass_on: Callable[[str], None]) -> tuple[int, str]:
        """Run a stage wherever the executor puts it; exit code and the sentence for a failure."""
        try:
            future = self.executor.submit(run_job, job | self.place)
            while not future.done():
                wait([future], timeout=SECONDS_BETWEEN_LOOKS)
                if time.monotonic() > self.give_up_at and not future.done():
                    future.cancel()
                    return STOPPED, "stopped"
            return future.result()
        except WorkbenchError as error:
            return BAD_INPUT, f"{job['name']} failed: {error}"
        except CancelledError:
            if self.give_up_at < float("inf"):
                return STOPPED, "stopped"
            return (
                FAILED,
                f"{job['name']} failed because its executor gave it up: look whether the scheduler still runs.",
            )
        except Exception as error:
            return FAILED, f"{job['name']} failed on its worker ({first_sentence(error)}): look at the worker's log."

    def stop(self) -> None:
        """Withdraw the ticket: stages notice and stop. What is not done in time, or by a second call, is let go."""
        again = not self.ticket.exists()
        self.ticket.unlink(missing_ok=True)
        self.give_up_at = time.monotonic() + (0 if again else SECONDS_TO_STOP)


def first_sentence(error: Exception) -> str:
    """An exception's type and the beginning of what it says."""
    said = " ".join(str(error).split()).split(". ")[0]
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__


@contextmanager
def ticket(folder: Path) -> Iterator[Path]:
    """A file that is there while this call runs; stages of an earlier call, whose ticket it replaces, stop."""
    path = folder / ".sweep.ticket"
    files.write_text(path, uuid.uuid4().hex)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Executor of the Dask scheduler at dask://HOST:PORT; WorkbenchError where there is none."""
    named = re.fullmatch(r"dask://([^/\s]+:\d+)/?", address)
    if not named:
        raise WorkbenchError(f"--executor is {address!r}: write local or dask://HOST:PORT.")
    try:
        from distributed import Client
    except ImportError:
        raise WorkbenchError(
            f"--executor {address} needs Dask: install it with `pip install -e .[dask]`, on the workers, too."
        ) from None
    for name in ("distributed", "distributed.client"):  # what goes wrong is said in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    scheduler = {"address": f"tcp://{named[1]}", "timeout": SECONDS_TO_CONNECT, "set_as_default": False}
    with answer(lambda: Client(**scheduler), address) as client:
        threads = client.nthreads().values()
        waiting = "" if threads else ", waiting for workers"
        print(f"{address}: workers: {len(threads)}, stages at a time: {sum(threads)}{waiting}", flush=True)
        yield client.get_executor(pure=False)


def answer(make: Callable[[], T], address: str) -> T:
    """What `make` returns; WorkbenchError where it fails or does not end, as with something else that listens there."""
    made: Future[T] = Future()

    def attempt() -> None:
        try:
            made.set_result(make())
        except Exception as error:
            made.set_exception(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        return made.result(timeout=2 * SECONDS_TO_CONNECT)
    except Exception as error:
        raise WorkbenchError(
            f"No Dask scheduler answers at {address} ({type(error).__name__}): start one with `dask scheduler` there, "
            "or correct the address."
        ) from error


# On the worker


def run_job(job: dict) -> tuple[int, str]:
    """Run a stage in a process of its own on this machine, unless an earlier attempt finished it: code and sentence."""
    folder, ticket = Path(job["folder"]), Path(job["ticket"])
    refuse_other_place(job)
    wait_until_free(folder, until=lambda: is_withdrawn(ticket, job["call"]))
    if is_withdrawn(ticket, job["call"]):
        return STOPPED, "stopped"
    if executed(folder).get("key") == job["metadata"]["key"]:
        return DONE, ""
    with closing(Processes()) as processes, watching(ticket, job["call"], processes):
        return processes.run_process(job, lambda line: print(f"{job['name']} | {line}", flush=True))


def refuse_other_place(job: dict) -> None:
    """WorkbenchError where this machine has another checkout, or does not see the folder of the sweep."""
    host, root, folder = socket.gethostname(), files.repository_root(), Path(job["ticket"]).parent
    if str(root) != job["root"]:
        raise WorkbenchError(f"the worker on {host} uses the checkout {root}: start workers from {job['root']}.")
    if not folder.is_dir():
        raise WorkbenchError(f"the worker on {host} does not see {folder}: choose a folder that all machines share.")


def is_withdrawn(ticket: Path, call: str) -> bool:
    """Whether the sweep stopped, or another took its place."""
    try:
        return ticket.read_text(encoding="utf-8") != call
    except FileNotFoundError:
        return True
    except OSError:  # a network disk that does not answer just now
        return False


@contextmanager
def watching(ticket: Path, call: str, processes: Processes) -> Iterator[None]:
    """Stop the processes once the ticket is withdrawn while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            if is_withdrawn(ticket, call):
                return processes.stop()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
