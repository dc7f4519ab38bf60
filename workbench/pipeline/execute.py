"""One notebook in a process and a kernel of its own, started by `workbench.pipeline.schedule`.

The job comes as one line of JSON on stdin, which stays open: when it closes, whoever started this is gone. What the
notebook prints goes to stdout, the last line of stderr says why it failed, the exit code is that of the command line.
"""

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

from workbench import BAD_INPUT, DONE, FAILED, STOPPED, WorkbenchError
from workbench.pipeline.kernel import OwnKernelManager, signal_kernel
from workbench.runs import files
from workbench.runs.record import keep_defaults, thread_settings

WRITTEN_OVER = re.compile(r"^.*\r(?=[^\n])", re.MULTILINE)  # what a terminal no longer shows of a line
SECONDS_TO_FINISH_A_STEP = 30  # after an interrupt; then the kernel is killed


class Stopped(Exception):
    """The process was asked to stop while no cell was running."""


class Stop:
    """Whether this process was asked to stop: a first signal interrupts the running cell, a second kills its kernel."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number, frame) -> None:
        patience = threading.Timer(SECONDS_TO_FINISH_A_STEP, signal_kernel, [signal.SIGKILL])
        patience.daemon = True
        patience.start()
        signal_kernel(signal.SIGKILL if self.asked else signal.SIGINT)
        self.asked = True

    def refuse_next_cell(self, **cell) -> None:
        if self.asked:
            raise Stopped


def main() -> int:
    """Execute the job on stdin; the exit code."""
    stop = Stop()
    job = json.loads(sys.stdin.readline())
    chosen = job.get("environment", {}) | {"WORKBENCH_THREADS": job["threads"]}
    os.environ |= thread_settings(job["threads"]) | {name: str(value) for name, value in chosen.items()}  # the kernel's
    threading.Thread(target=stop_with_parent, daemon=True).start()
    folder = files.resolve(job["folder"])
    try:
        with files.explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with files.locked(folder / ".notebook.lock"):
            code, sentence = execute(job, folder, stop)
    except WorkbenchError as error:
        code, sentence = BAD_INPUT, str(error)
    print(sentence, file=sys.stderr)
    return code


def stop_with_parent() -> None:
    """End this process, and with it the kernel, once stdin closes."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def execute(job: dict, folder: Path, stop: Stop) -> tuple[int, str]:
    """Execute into `notebook.part.ipynb`, renamed once it is whole; exit code and the sentence for a failure."""
    part, done, failed = (folder / f"notebook{kind}.ipynb" for kind in (".part", "", ".failed"))
    keep_defaults(folder, job["defaults"])
    done.unlink(missing_ok=True)  # from here on this stage is not finished
    try:
        with files.explain_write_errors(part):
            run_papermill(job, part, stop)
    except (papermill.PapermillExecutionError, DeadKernelError, RuntimeError, Stopped) as error:
        if stop.asked:
            return STOPPED, "stopped"
        publish(part, failed, job["metadata"])
        return failure(error, job["name"], failed)
    else:
        publish(part, done, job["metadata"])
        failed.unlink(missing_ok=True)
        return DONE, ""
    finally:
        part.unlink(missing_ok=True)  # stopped, or cut short by a full disk


def run_papermill(job: dict, part: Path, stop: Stop) -> None:
    papermill.execute_notebook(
        papermill_path(files.resolve(job["notebook"])),
        papermill_path(part),
        parameters=job["parameters"],
        kernel_name="python3",
        language="python",
        cwd=str(files.repository_root()),
        progress_bar=False,
        stdout_file=sys.stdout,
        kernel_manager_class=OwnKernelManager,
        store_widget_state=False,  # megabytes for each interactive figure
        on_cell_start=stop.refuse_next_cell,
    )


def papermill_path(path: Path) -> str:
    """The path with braces doubled, as papermill formats paths with the parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def publish(part: Path, target: Path, metadata: dict) -> None:
    """Write an executed notebook under its final name, with what is needed to recognise it later."""
    notebook = nbformat.read(part, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = coalesced(cell.outputs)
    notebook.metadata["workbench"] = metadata
    files.write_text(target, nbformat.writes(notebook))


def coalesced(outputs: list) -> list:
    """One block of printed text per stream and cell, not one per line, and stdout before a stderr that it follows.

    nbclient's own way, `coalesce_streams`, takes time that is quadratic in the length of a line.
    """
    texts, kept = {}, []
    for output in outputs:
        name = output.name if output.output_type == "stream" else ""
        if name not in texts:
            kept.append(output)
        if name:
            texts.setdefault(name, []).append(output.text)
    for output in kept:
        if output.output_type == "stream":
            output.text = WRITTEN_OVER.sub("", "".join(texts[output.name]))
    names = [output.get("name") for output in kept]
    if "stderr" in names and names[(first := names.index("stderr")) + 1 :][:1] == ["stdout"]:
        kept[first : first + 2] = reversed(kept[first : first + 2])
    return kept


def failure(error: Exception, name: str, output: Path) -> tuple[int, str]:
    """Exit code and sentence for a notebook that did not reach its end."""
    seen = f"see {files.shown(output)}"
    if not isinstance(error, papermill.PapermillExecutionError):
        reason = " ".join(str(error).split()) or type(error).__name__
        return FAILED, f"{name} failed because its kernel ended ({reason}): memory may have run out, {seen}."
    where = f"{name} failed in cell [{error.exec_count}]"
    evalue = " ".join(error.evalue.split())[:500]
    if error.ename == WorkbenchError.__name__:
        return BAD_INPUT, f"{where}: {evalue} ({seen})"
    return FAILED, f"{where}: {error.ename}: {evalue} ({seen})"
