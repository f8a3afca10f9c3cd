"""Hosts on this machine: namespaces with their own network and processes, an sshd each, joined by a bridge. For root.

with running_hosts(folder, 3) as hosts:
    hosts[1].ssh_options
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.settings import ROOT

INTERFACE = "an0"  # of every host, as GLOO_SOCKET_IFNAME needs it
GATEWAY = "10.77.77.254"  # this machine, as the hosts see it
PORT = 2222  # of sshd
NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "pdsh": "pdsh", "nsenter": "util-linux", "ssh": "openssh-client"}


@dataclass(kw_only=True)
class Host:
    number: int  # from 1
    folder: Path  # holds the key that opens it
    _process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"10.77.77.{self.number}"

    @property
    def _namespace(self) -> str:
        return f"an-host{self.number}"

    @property
    def _cable(self) -> str:
        """Its end on this machine."""
        return f"an-cable{self.number}"

    def create(self, bridge: str) -> None:
        ip(f"netns add {self._namespace}")
        ip(f"link add {self._cable} type veth peer name {INTERFACE} netns {self._namespace}")
        ip(f"link set {self._cable} master {bridge} up")
        ip(f"-n {self._namespace} addr add {self.name}/24 dev {INTERFACE}")
        self.plug_in()
        ip(f"-n {self._namespace} link set lo up")

    def remove(self) -> None:
        self.switch_off()
        ip(f"link del {self._cable}")
        ip(f"netns del {self._namespace}")

    def switch_on(self) -> None:
        keys = [f"-oHostKey={self.folder}/key", f"-oAuthorizedKeysFile={self.folder}/key.pub", "-oStrictModes=no"]
        sshd = [shutil.which("sshd") or "", "-D", "-e", "-f", "/dev/null", "-oPidFile=none", "-oUsePAM=no"]
        alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with (self.folder / f"sshd-{self.number}.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self._namespace, *alone, *sshd, f"-oListenAddress={self.name}:{PORT}", *keys],
                stderr=log,
            )
        self._wait_for_ssh()

    def _wait_for_ssh(self, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return socket.create_connection((self.name, PORT), 1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def switch_off(self) -> None:
        """All of its processes end at once."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def unplug(self) -> None:
        """Its processes go on and reach nobody."""
        ip(f"-n {self._namespace} link set {INTERFACE} down")

    def plug_in(self) -> None:
        ip(f"-n {self._namespace} link set {INTERFACE} up")

    @property
    def _first_pid(self) -> int:
        """Of the process that all others of the host descend from."""
        outer = self._process.pid
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text())

    def enter(self) -> list[str]:
        """What runs a command on this host when it is put before it."""
        return ["nsenter", "-t", str(self._first_pid), "-n", "-p", "-m", "env", "-C", str(ROOT)]

    def has(self, pid: int) -> bool:
        """Whether the process, a pid of this machine, runs on this host."""
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self._first_pid}/ns/pid")
        return False

    @property
    def ssh_options(self) -> str:
        known = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        return f"-p {PORT} -i {self.folder}/key {known}"


@contextlib.contextmanager
def running_hosts(folder: Path, count: int) -> Iterator[list[Host]]:
    """Skips the test where the machine cannot have them."""
    if missing := [package for command, package in NEEDED.items() if not shutil.which(command)]:
        pytest.skip(f"hosts need {', '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.getuid() != 0 or subprocess.run(["unshare", "--net", "--pid", "--fork", "true"]).returncode:
        pytest.skip("hosts are namespaces, which only root may make")
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its privileges
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    bridge = "an-br"
    with contextlib.ExitStack() as stack:
        ip(f"link add {bridge} type bridge")
        stack.callback(ip, f"link del {bridge}")
        ip(f"addr add {GATEWAY}/24 dev {bridge}")
        ip(f"link set {bridge} up")
        hosts = [Host(number=number, folder=folder) for number in range(1, count + 1)]
        for host in hosts:
            host.create(bridge)
            stack.callback(host.remove)
            host.switch_on()
        yield hosts


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((GATEWAY, 0))
        return int(listener.getsockname()[1])
