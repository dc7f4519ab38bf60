"""A kernel that is forked before its notebook is known, from a process that has imported what notebooks need."""

import json
import os
import signal
import sys

from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

NAME = "workbench-spare"


class SpareKernel:
    """The forked process: the part of `subprocess.Popen` that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, orders: int):
        self.pid, self.returncode, self._orders = pid, None, orders

    def start(self, arguments: list[str], *, environment: dict[str, str], folder: str) -> None:
        """Let it become a kernel: `arguments` are those of ipykernel."""
        with os.fdopen(self._orders, "w", encoding="utf-8") as orders:
            json.dump({"arguments": arguments, "environment": environment, "folder": folder}, orders)

    def poll(self) -> int | None:
        """The exit code, -N after signal N, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """The exit code, once there is one."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    terminate = kill


class SpareProvisioner(LocalProvisioner):
    """Starts the spare kernel where jupyter_client would start a process."""

    spare: SpareKernel | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs):
        process = SpareProvisioner.spare
        arguments = [*cmd[3:], f"--IPKernelApp.parent_handle={os.getpid()}"]  # cmd is: python -m ipykernel_launcher ...
        process.start(arguments, environment=dict(kwargs["env"]), folder=str(kwargs.get("cwd") or os.getcwd()))
        self.process, self.pid, self.pgid, self.cwd = process, process.pid, process.pid, kwargs.get("cwd")
        SpareProvisioner.spare = None
        return self.connection_info


def fork() -> None:
    """Fork the kernel of this process's notebook; call it while there is one thread. It leaves in `sys.exit`."""
    waiting, orders = os.pipe()
    if pid := os.fork():
        os.close(waiting)
        SpareProvisioner.spare = SpareKernel(pid, orders)
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


def metadata() -> dict:
    """Metadata of a kernel spec that is started here: the spare kernel where there is one, else none."""
    if SpareProvisioner.spare is None:
        return {}
    from importlib.metadata import EntryPoint

    group = KernelProvisionerFactory.GROUP_NAME
    entry = EntryPoint(name=NAME, value=f"{__name__}:SpareProvisioner", group=group)
    KernelProvisionerFactory.instance().provisioners[NAME] = entry
    return {"kernel_provisioner": {"provisioner_name": NAME}}
