"""The stages that run on this machine, each in a process of its own: started, listened to, stopped.

Imports take several seconds, longer than many stages compute. A server does them once and forks itself for each stage,
which it may, having a single thread. The forkserver of the standard library can not do that here: it refuses in Dask's
workers, which are daemons; every fork of it runs the script that called us again; there is one for each process, with
one environment. Only Linux promises that what was imported survives a fork: nothing is forked elsewhere.
"""

import ast
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from workbench.pipeline.ranks import run_ranks
from workbench.runs.record import thread_settings

SECONDS_TO_STOP = 60  # then what still runs is killed
# On import jsonschema compiles a grammar of web addresses, for 1.7 seconds; checking notebooks works without it.
WITHOUT_GRAMMAR = "import sys; sys.modules['rfc3987_syntax'] = None; "
START = WITHOUT_GRAMMAR + "from workbench.pipeline.execute import main; sys.exit(main())"
SERVE = WITHOUT_GRAMMAR + "from workbench.pipeline.workers import serve; serve(int(sys.argv[1]))"
AT_ONCE = ("ipykernel.kernelapp", "workbench.pipeline.execute")  # what every stage needs, whatever its notebook imports
# Known to start nothing when they are imported; what else a notebook imports, it imports itself.
KNOWN = ("workbench", "datasets", "numpy", "pandas", "plotly", "torch", "transformers")
LATER = {
    "workbench.models.load": ("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto")
}
MESSAGE = 1 << 16  # bytes; ours are far shorter


class Forked:
    """A process that was forked: the part of `subprocess.Popen` that is used of it."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkedStage(Forked):
    """A stage that the server forked and tells about on `life`: its process id, and the exit code once it has ended."""

    def __init__(self, *, stdin: int, stdout: int, life: int):
        self.stdin = os.fdopen(stdin, "w", encoding="utf-8")
        self.stdout = os.fdopen(stdout, encoding="utf-8", errors="replace")
        self._life = os.fdopen(life, encoding="ascii")
        born = self._life.readline()
        super().__init__(int(born or 0))
        self.returncode = None if born else -signal.SIGKILL  # the server is gone

    def wait(self) -> int:
        """The exit code, once there is one, -N after signal N."""
        if self.returncode is None:
            with self._life:
                self.returncode = int(self._life.readline() or -signal.SIGKILL)
        return self.returncode


class Processes:
    """The processes of the stages that run now."""

    def __init__(self):
        self.running: dict[str, subprocess.Popen | ForkedStage] = {}  # by stage
        self.stopped = False
        self.environment = environment()
        self._server: subprocess.Popen | None = None
        self._asking: socket.socket | None = None
        self._starting = threading.Lock()

    def run_process(self, job: dict, pass_on: Callable[[str], None]) -> tuple[int, str]:
        """Run a stage in its own process or processes, passing on what it prints; exit code, sentence for a failure."""
        if job["processes"] == 1:
            return self.run_one(job, pass_on)
        return run_ranks(job, pass_on, run=self.run_one, stop=self.stop_one)

    def run_one(self, job: dict, pass_on: Callable[[str], None]) -> tuple[int, str]:
        """The same in one process."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            process = self.fork(job["imports"], errors) if is_possible() else self.start(errors)
            self.running[job["name"]] = process
            with suppress(BrokenPipeError), process.stdout, process.stdin:  # broken where it ended before it listened
                if self.stopped:
                    interrupt(process)
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                for line in process.stdout:
                    pass_on(line.rstrip("\n"))
                process.wait()
            code = process.wait()
            del self.running[job["name"]]
            errors.seek(0)
            lines = errors.read().split("\n")
        return code, next((line for line in reversed(lines) if line), f"{job['name']} ended with code {code}.")

    def start(self, errors) -> subprocess.Popen:
        """A process that waits for its job on stdin and imports everything itself."""
        return subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=self.environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches only us, who pass it on
        )

    def fork(self, imports: Sequence[str], errors) -> ForkedStage:
        """The same, forked from a server that has imported what every stage needs and now these modules as well."""
        with self._starting:
            if self._server is None or self._server.poll() is not None:
                self._start_server()
        (job, stdin), (stdout, prints), (life, tells) = os.pipe(), os.pipe(), os.pipe()
        with suppress(OSError):  # the server is gone: nobody will tell
            socket.send_fds(self._asking, ["\n".join(imports).encode() or b"\n"], [job, prints, errors.fileno(), tells])
        for theirs in (job, prints, tells):
            os.close(theirs)
        return ForkedStage(stdin=stdin, stdout=stdout, life=life)

    def _start_server(self) -> None:
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        command = [sys.executable, "-c", SERVE, str(asked.fileno())]
        with asked:
            self._server = subprocess.Popen(
                command, **nowhere, pass_fds=[asked.fileno()], env=self.environment, start_new_session=True
            )

    def close(self) -> None:
        """End the server; stages that still run are not touched."""
        if self._server is not None:
            with self._asking, suppress(OSError):
                self._asking.shutdown(socket.SHUT_RDWR)
            self._server.wait()
            self._server = None

    def stop(self) -> None:
        """Interrupt every stage that runs, and kill those that do not end in time."""
        self.stopped = True
        for name in list(self.running):  # others may begin meanwhile
            self.stop_one(name)

    def stop_one(self, name: str) -> None:
        """The same for one of them, if it runs."""
        if process := self.running.get(name):
            interrupt(process)


def interrupt(process: subprocess.Popen | ForkedStage) -> None:
    """Ask a stage to stop, and kill it where it does not end in time."""
    process.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a background job starts
    killer = threading.Timer(SECONDS_TO_STOP, process.kill)
    killer.daemon = True
    killer.start()


def environment() -> dict[str, str]:
    """Environment of a stage's process, which computes nothing itself; its job says with how many threads it may."""
    chosen = os.environ | thread_settings(1) | {"PYTHONUTF8": "1"}
    chosen.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too, would fill executed notebooks
    chosen.pop("JPY_SESSION_NAME", None)  # of the notebook that this was started from: nobody watches this one
    return chosen


def is_possible() -> bool:
    """Whether this system can fork what it has imported."""
    return sys.platform == "linux"


def imported_by(sources: Sequence[str]) -> list[str]:
    """The known modules that a notebook's cells import; those of a cell that is not plain Python are left out."""
    names = []
    for source in sources:
        with suppress(SyntaxError, ValueError):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):  # what is imported from a package may be a module itself
                    names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    known = [name for name in dict.fromkeys(names) if name.split(".")[0] in KNOWN]
    return [part for name in known for part in (name, *LATER.get(name, ()))]


# In the server


def serve(number: int) -> None:
    """Fork a stage for each message on the socket with this file number, until that closes."""
    import_modules(AT_ONCE)
    asked, children, tried = socket.socket(fileno=number), {}, set()
    signal.signal(signal.SIGCHLD, lambda *_: tell_ended(children))
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, MESSAGE, 4)
        if not message:
            return
        names = [name for name in message.decode().split() if name not in tried]
        import_modules(names)
        tried.update(names)
        *standard, tells = descriptors
        pid = os.fork()
        if not pid:
            be_stage(standard, foreign=[asked.detach(), tells, *children.values()])
        tell(tells, pid)
        children[pid] = tells
        tell_ended(children)  # it may have ended before it stood there
        for descriptor in standard:
            os.close(descriptor)


def import_modules(names: Sequence[str]) -> None:
    """Import those that exist; whatever fails here, the notebook will meet itself."""
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)
    if names:
        gc.collect()
        gc.freeze()  # a child that collected garbage among what was imported would copy all of it


def tell_ended(children: dict[int, int]) -> None:
    """Tell the exit code of every child that has ended where it is waited for."""
    for pid in list(children):
        with suppress(ChildProcessError):  # told by a signal that came meanwhile
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                tells = children.pop(pid)
                tell(tells, os.waitstatus_to_exitcode(status))
                os.close(tells)


def tell(descriptor: int, number: int) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(descriptor, f"{number}\n".encode())


def be_stage(standard: Sequence[int], *, foreign: Sequence[int]) -> None:
    """Make a fresh fork what a process of its own would be, fork its kernel and execute the job that comes on stdin."""
    from workbench.pipeline import execute, kernel

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    for descriptor in [*foreign, *standard]:
        os.close(descriptor)
    kernel.fork()
    code = execute.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take apart what was imported would first copy it, for as long as many stages compute
