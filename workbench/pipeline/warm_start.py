"""Stages that start at once: a process that has imported what notebooks need, and forks itself for each of them.

The imports of one stage take several seconds, longer than many stages compute. They are done once, by a server, which
has a single thread and so may fork. Only Linux promises that what was imported survives a fork.
"""

import ast
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

AT_ONCE = ("ipykernel.kernelapp", "workbench.pipeline.execute")  # what every stage needs, whatever its notebook imports
# Known to start nothing when they are imported; what else a notebook imports, it imports itself.
KNOWN = ("workbench", "datasets", "numpy", "pandas", "plotly", "torch", "transformers")
LATER = {
    "workbench.models.load": ("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto")
}
# On import jsonschema compiles a grammar of web addresses, for 1.7 seconds; checking notebooks works without it.
WITHOUT_GRAMMAR = "import sys; sys.modules['rfc3987_syntax'] = None; "
SERVE = WITHOUT_GRAMMAR + "from workbench.pipeline.warm_start import main; main(int(sys.argv[1]))"
MESSAGE = 1 << 16  # bytes; ours are far shorter


class WarmStart:
    """The server as whoever starts stages sees it: `popen` starts one and looks like `subprocess.Popen`."""

    def __init__(self, environment: dict[str, str]):
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        self._asking = threading.Lock()
        self._born: list[WarmProcess] = []  # in the order in which they were asked for
        self._alive: dict[int, WarmProcess] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the server still serves."""
        return self._server.poll() is None

    def popen(self, notebook: str, errors) -> "WarmProcess":
        """A stage for `notebook` (a path) that waits for its job on stdin; its stderr goes to the file `errors`."""
        for_stage, job = os.pipe()
        lines, from_stage = os.pipe()
        process = WarmProcess(
            stdin=os.fdopen(job, "w", encoding="utf-8"), stdout=os.fdopen(lines, encoding="utf-8", errors="replace")
        )
        try:
            with self._asking:
                self._born.append(process)
                socket.send_fds(self._ours, [notebook.encode()], [for_stage, from_stage, errors.fileno()])
        except OSError:  # the server is gone
            process.ended(-signal.SIGKILL)
        finally:
            os.close(for_stage)
            os.close(from_stage)
        return process

    def close(self) -> None:
        """End the server; stages that still run are not touched."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._server.wait()

    def _listen(self) -> None:
        """Take note of stages that were born and that ended, until the server is gone."""
        with contextlib.suppress(OSError):
            while message := self._ours.recv(MESSAGE):
                said = json.loads(message)
                if "born" in said:
                    process = self._born.pop(0)
                    process.pid = said["born"]
                    self._alive[process.pid] = process
                    process.is_born.set()
                else:
                    self._alive.pop(said["ended"]).ended(said["code"])
        for process in [*self._born, *self._alive.values()]:
            process.ended(-signal.SIGKILL)


class WarmProcess:
    """A stage that the server forked: the part of `subprocess.Popen` that is used of it."""

    def __init__(self, *, stdin, stdout):
        self.stdin, self.stdout = stdin, stdout
        self.pid, self.returncode = 0, None
        self.is_born, self._has_ended = threading.Event(), threading.Event()

    def ended(self, code: int) -> None:
        """Note the exit code, -N after signal N."""
        self.returncode = code
        self.is_born.set()
        self._has_ended.set()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.returncode

    def wait(self) -> int:
        """The exit code, once there is one."""
        self._has_ended.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        self.is_born.wait()
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def is_possible() -> bool:
    """Whether this system can fork what it has imported."""
    return sys.platform == "linux"


# In the server


def main(number: int) -> None:
    """Fork a stage for each message on the socket with this file number, until that closes."""
    import_modules(AT_ONCE)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that a child's end interrupts select
    stage = serve(socket.socket(fileno=number))
    if stage:
        code = stage()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # to take apart what was imported would first copy it, for as long as many stages compute


def serve(asked: socket.socket) -> Callable[[], int] | None:
    """Serve until the socket closes; returns in every child with what the child has to do, in the server with None."""
    import select

    tried: set[str] = set()
    ends, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    while True:
        ready, _, _ = select.select([asked, ends], [], [])
        if ends in ready:
            os.read(ends, MESSAGE)
            report_ended(asked)
        if asked in ready:
            message, descriptors, _, _ = socket.recv_fds(asked, MESSAGE, 3)
            if not message:
                return None
            names = [name for name in imported_by(message.decode()) if name not in tried]
            import_modules(names)
            tried.update(names)
            if pid := os.fork():
                asked.send(json.dumps({"born": pid}).encode())
                for descriptor in descriptors:
                    os.close(descriptor)
            else:
                signal.set_wakeup_fd(-1)
                become_stage([asked.detach(), ends, wakes], descriptors)
                return stage


def imported_by(notebook: str) -> list[str]:
    """The known modules that a notebook's cells import; those of a cell that is not plain Python are left out.

    None of a file that can not be read: the server lives on, and the stage itself will say what is wrong.
    """
    names, cells = [], []
    with contextlib.suppress(Exception):
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        with contextlib.suppress(Exception):
            for node in ast.walk(ast.parse("".join(cell["source"]) if cell["cell_type"] == "code" else "")):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):  # what is imported from a package may be a module itself
                    names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    known = [name for name in names if name.split(".")[0] in KNOWN]
    return [part for name in known for part in (name, *LATER.get(name, ()))]


def import_modules(names: Sequence[str]) -> None:
    """Import those that exist; whatever fails here, the notebook will meet itself."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if names:
        gc.collect()
        gc.freeze()  # a child that collected garbage among what was imported would copy all of it


def report_ended(asked: socket.socket) -> None:
    """Tell of every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            with contextlib.suppress(OSError):  # nobody listens any more
                asked.send(json.dumps({"ended": found[0], "code": code}).encode())


def become_stage(servers: list[int], descriptors: list[int]) -> None:
    """Make a fresh fork what a process of its own would be: own session, own standard streams, no open sockets."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
    for descriptor in [*servers, *descriptors]:
        os.close(descriptor)


def stage() -> int:
    """Execute the job that comes on stdin, in a kernel that is another fork; or be that kernel."""
    from workbench.pipeline import execute, spare_kernel

    spare_kernel.fork()
    return execute.main()
