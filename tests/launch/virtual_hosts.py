"""Hosts on one machine: namespaces with a network, a name, processes and a /dev/shm of their own.

A switch in a namespace of its own connects them. Nothing of this is to be seen from outside, and
all of it ends with the process that has made it, whichever way that ends.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

NEEDED = ("ip", "unshare", "nsenter", "bash")


def lacks(*programs: str) -> str:
    """What virtual hosts need and this machine has not: root, or programs."""
    if os.geteuid() != 0:
        return "root"
    return ", ".join(name for name in (*NEEDED, *programs) if shutil.which(name) is None)


def child(pid: int) -> int:
    """The only child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


class Namespaces:
    """Namespaces, for as long as their first process lives: until `close`, or this process ends.

    Args:
        kinds: options of unshare and nsenter, such as --net.
        setup: the shell commands to begin with.
    """

    def __init__(self, *kinds: str, setup: str = "") -> None:
        self._kinds = kinds
        shell = ["bash", "-ec", f"{setup}\necho ready\nread"]  # it reads until this process ends
        make = ["unshare", *kinds, "--mount-proc", "--pid", "--fork", "--kill-child"]
        self._keeper = subprocess.Popen(
            [*make, *shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._keeper.stdout.readline() != "ready\n":
            self.close()
            raise OSError(f"these commands have failed: {setup}")
        self.pid = child(self._keeper.pid)

    def inside(self, *command: object) -> list[str]:
        """The command that runs another one there."""
        return ["nsenter", f"--target={self.pid}", *self._kinds, *map(str, command)]

    def run(self, *command: object) -> None:
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def close(self) -> None:
        """The kernel kills all processes that are left, and removes interfaces and mounts."""
        self._keeper.communicate(timeout=60)


class Program:
    """A program that was started on a host; its output goes to a file.

    Args:
        command: as `Namespaces.inside` gives it.
        log: the file.
        popen: the options of subprocess.
    """

    def __init__(self, command: list[str], log: Path, **popen: object) -> None:
        self.log_file = log
        with log.open("w") as file:
            self._outside = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, **popen
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program, not to the nsenter that waits for it."""
        os.kill(child(self._outside.pid), number)

    def ends(self, seconds: float) -> int:
        """Its exit code; an error with its output where it takes longer."""
        try:
            return self._outside.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds} s:\n{self.log}") from None


class VirtualHosts:
    """Hosts 10.0.0.1, 10.0.0.2, ... with the names host-0, host-1, ..., each with an eth0.

    Args:
        folder: for files; all hosts see all files of this machine.
        count: of hosts.
        setup: more shell commands that each host begins with; $n is its number.
    """

    def __init__(self, folder: Path, count: int, setup: str = "") -> None:
        self._folder = folder
        self._hosts: list[Namespaces] = []
        self._programs: list[Program] = []
        names = "".join(f"10.0.0.{n + 1} host-{n}\n" for n in range(count))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (folder / "no-name-servers").touch()  # one that is out of reach costs 10 s a look-up
        self._switch = Namespaces(
            "--net", "--mount", setup="ip link add bridge type bridge\nip link set bridge up"
        )
        try:
            for number in range(count):
                self._hosts.append(self._boot(number, setup))
                self._plug_in(number)
        except BaseException:
            self.close()
            raise

    def _boot(self, n: int, setup: str) -> Namespaces:
        begin = f"""n={n}
            hostname host-$n
            mount --bind {self._folder}/hosts /etc/hosts
            mount --bind {self._folder}/no-name-servers /etc/resolv.conf
            mount -t tmpfs none /dev/shm
            ip link set lo up
            {setup}"""
        return Namespaces("--net", "--uts", "--mount", "--pid", setup=begin)

    def _plug_in(self, n: int) -> None:
        host = self._hosts[n]
        cable = ["link", "add", f"port{n}", "type", "veth", "peer", "name", "eth0"]
        self._switch.run("ip", *cable, "netns", host.pid)
        self._switch.run("ip", "link", "set", f"port{n}", "master", "bridge", "up")
        host.run("ip", "address", "add", f"10.0.0.{n + 1}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")

    def start(self, host: int, *command: object, log: str, **environment: str) -> Program:
        """Start a program on a host, in the folder; these are all its variables."""
        inside = self._hosts[host].inside("env", f"--chdir={self._folder}", *command)
        self._programs.append(Program(inside, self._folder / log, env=environment))
        return self._programs[-1]

    def cable(self, host: int, state: str) -> None:
        """Cut the link of a host to the switch (`down`), or restore it (`up`)."""
        self._switch.run("ip", "link", "set", f"port{host}", state)

    def close(self) -> None:
        for each in (*self._hosts, self._switch):
            each.close()
        for program in self._programs:
            program.ends(60)
