"""The kernel of one notebook: this interpreter, forked where that is possible, and how it is signalled."""

import json
import os
import sys
from contextlib import suppress
from importlib.metadata import EntryPoint

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from workbench import WorkbenchError
from workbench.pipeline.workers import Forked

SPARE = "workbench-spare"  # name of the provisioner below


class OwnKernelManager(AsyncKernelManager):
    """Kernels of this interpreter, whichever others the installed kernelspecs name."""

    current: "OwnKernelManager | None" = None

    def __init__(self, **traits):
        super().__init__(**traits)
        OwnKernelManager.current = self

    @property
    def kernel_spec(self) -> KernelSpec:
        extension = f"--InteractiveShellApp.extensions={__name__}"
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", extension]
        metadata = {"kernel_provisioner": {"provisioner_name": SPARE}} if SpareProvisioner.spare else {}
        return KernelSpec(argv=argv, display_name="Python 3", language="python", metadata=metadata)


def signal_kernel(number: int) -> None:
    """Send a signal to the kernel and the processes that it started, if there is one."""
    process = getattr(getattr(OwnKernelManager.current, "provisioner", None), "process", None)
    with suppress(ProcessLookupError):
        if process is not None:
            os.killpg(os.getpgid(process.pid), number)


# A spare kernel is forked before its notebook is known, from a process that has imported what notebooks need


class SpareKernel(Forked):
    """The forked process, which waits for its orders in a pipe."""

    def __init__(self, pid: int, orders: int):
        super().__init__(pid)
        self._orders = orders

    def start(self, arguments: list[str], *, environment: dict[str, str], folder: str) -> None:
        """Let it become a kernel: `arguments` are those of ipykernel."""
        with os.fdopen(self._orders, "w", encoding="utf-8") as orders:
            json.dump({"arguments": arguments, "environment": environment, "folder": folder}, orders)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """The exit code, -N after signal N, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int | None:
        """The exit code, once there is one."""
        return self.poll(0)

    terminate = Forked.kill


class SpareProvisioner(LocalProvisioner):
    """Starts the spare kernel where jupyter_client would start a process."""

    spare: SpareKernel | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs):
        process, SpareProvisioner.spare = SpareProvisioner.spare, None
        arguments = [*cmd[3:], f"--IPKernelApp.parent_handle={os.getpid()}"]  # cmd is: python -m ipykernel_launcher ...
        process.start(arguments, environment=dict(kwargs["env"]), folder=str(kwargs.get("cwd") or os.getcwd()))
        self.process, self.pid, self.pgid, self.cwd = process, process.pid, process.pid, kwargs.get("cwd")
        return self.connection_info


def fork() -> None:
    """Fork the kernel of this process's notebook; call it while there is one thread. It leaves in `sys.exit`."""
    waiting, orders = os.pipe()
    if pid := os.fork():
        os.close(waiting)
        SpareProvisioner.spare = SpareKernel(pid, orders)
        entry = EntryPoint(SPARE, f"{__name__}:SpareProvisioner", KernelProvisionerFactory.GROUP_NAME)
        KernelProvisionerFactory.instance().provisioners[SPARE] = entry
        return
    os.close(orders)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with os.fdopen(waiting, encoding="utf-8") as order:
        text = order.read()
    if not text:  # no notebook came
        os._exit(0)
    be_kernel(**json.loads(text))
    sys.exit(0)


def be_kernel(arguments: list[str], *, environment: dict[str, str], folder: str) -> None:
    """Run ipykernel in this process until it is told to end."""
    from ipykernel.kernelapp import launch_new_instance

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["ipykernel_launcher", *arguments]
    launch_new_instance(arguments)


# In the kernel


def load_ipython_extension(shell) -> None:
    """Report each kind of `WorkbenchError` under that one name, so that the command line knows bad input from a bug."""
    shell.set_custom_exc((WorkbenchError,), show_as_workbench_error)


def show_as_workbench_error(shell, kind, error, traceback, tb_offset=None) -> None:
    shell.showtraceback((WorkbenchError, error, traceback), tb_offset=tb_offset)
