"""Hosts that are network namespaces, joined by a bridge, or by a switch that delays and loses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hostparts import Missing

BURST, LATENCY = 32 << 10, "20ms"
NAMES, PARTS = Path("/etc/netns"), Path(__file__).resolve().parents[1]
MTU = 9000
"""Of hosts behind a switch, which handles packet by packet."""


def command(*words: str) -> str:
    """Run a command of iproute2 and return what it prints.

    Raises:
        Missing: when it fails, with what it said.
    """
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise Missing(f"{' '.join(words)}: {said[-1]}")
    return done.stdout


def check() -> None:
    """Make sure that there can be hosts.

    Raises:
        Missing: for want of iproute2, or of rights.
    """
    for tool in ("ip", "tc"):
        if not shutil.which(tool):
            raise Missing(f"{tool} is not installed - do: apt-get install -y iproute2")
    if os.geteuid():
        raise Missing("network namespaces need root - do: run this as root")


class Hosts:
    """Hosts ``NAME1``, ``NAME2``, ... with addresses of one network; gone when closed.

    Args:
        count: how many.
        name: of them all; by default made of this process's number.
        subnet: the first three numbers of their addresses.
        delay_s: one way between two hosts; with ``loss``, the share of packets that are lost, it
            puts a switch in the place of the bridge.
    """

    def __init__(
        self, count: int, name: str = "", subnet: str = "10.78.0", delay_s: float = 0.0,
        loss: float = 0.0,
    ) -> None:  # fmt: skip
        check()
        self.name, self.subnet, self.count = name or f"dlp{os.getpid()}-", subnet, count
        self.switch = f"{self.name}switch"
        if {self.switch, *map(self.space, range(count))} & set(spaces()):
            raise Missing(f"hosts {self.name}* are there already - do: hosts.py down, or --name")
        self.process: subprocess.Popen[str] | None = None
        try:
            self._add(self.switch)
            for number in range(count):
                self._add(self.space(number))
            self._tell_names()
            if delay_s or loss:
                self._relay(delay_s, loss)
            else:
                self._bridge()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def found(name: str) -> Hosts:
        """Return the hosts of a name that another process has made.

        Raises:
            Missing: there are none.
        """
        hosts = Hosts.__new__(Hosts)
        hosts.name, hosts.process, hosts.switch = name, None, f"{name}switch"
        hosts.count = sum(space[len(name) :].isdecimal() for space in spaces()
                          if space.startswith(name))  # fmt: skip
        if not hosts.count:
            raise Missing(f"there are no hosts {name}* - do: hosts.py up COUNT")
        line = (NAMES / hosts.space(0) / "hosts").read_text().splitlines()[1]
        hosts.subnet = line.split()[0].rpartition(".")[0]
        return hosts

    def _add(self, space: str) -> None:
        command("ip", "netns", "add", space)
        command("ip", "-n", space, "link", "set", "lo", "up")

    def _tell_names(self) -> None:
        """Let every host know the others by name; ``ip netns exec`` puts these files into /etc."""
        known = [f"{self.ip(number)} {self.space(number)}" for number in range(self.count)]
        for number in range(self.count):
            folder = NAMES / self.space(number)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known]) + "\n")

    def _bridge(self) -> None:
        command("ip", "-n", self.switch, "link", "add", "bridge0", "type", "bridge")
        command("ip", "-n", self.switch, "link", "set", "bridge0", "up")
        for number in range(self.count):
            space, port = self.space(number), f"port{number}"
            command("ip", "-n", self.switch, "link", "add", port, "type", "veth",
                    "peer", "name", "eth", "netns", space)  # fmt: skip
            command("ip", "-n", self.switch, "link", "set", port, "master", "bridge0", "up")
            self._address(number)

    def _address(self, number: int) -> None:
        space = self.space(number)
        command("ip", "-n", space, "addr", "add", f"{self.ip(number)}/24", "dev", "eth")
        command("ip", "-n", space, "link", "set", "eth", "up")

    def _relay(self, delay_s: float, loss: float) -> None:
        """Let a process pass packets on, which may be late or lost."""
        words = ["-m", "hostparts.switch", str(delay_s), str(loss), self.subnet]
        self.process = subprocess.Popen(
            [sys.executable, *words, *map(self.space, range(self.count))], cwd=PARTS, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stderr is not None
        if self.process.stdout.readline() != "ready\n":
            said = self.process.stderr.read().strip().splitlines() or ["it said nothing"]
            raise Missing(f"the switch does not start: {said[-1]}")
        for number in range(self.count):
            command("ip", "-n", self.space(number), "link", "set", "eth", "mtu", str(MTU))
            self._address(number)
        self._note().write_text(str(self.process.pid))

    def _note(self) -> Path:
        """Return the file in which the number of the switch's process is kept."""
        return Path("/run") / f"{self.switch}.pid"

    def ip(self, number: int) -> str:
        """Return a host's address."""
        return f"{self.subnet}.{number + 1}"

    def space(self, number: int) -> str:
        """Return a host's name, which is its namespace's, too."""
        return f"{self.name}{number + 1}"

    def names(self) -> list[str]:
        """Return all hosts' names."""
        return [self.space(number) for number in range(self.count)]

    def shape(self, number: int, mbit: float) -> None:
        """Limit what a host sends, and what is sent to it."""
        bucket = ("root", "tbf", "rate", f"{mbit}mbit", "burst", str(BURST), "latency", LATENCY)
        for space, device in self.ends(number):
            command("tc", "-n", space, "qdisc", "replace", "dev", device, *bucket)

    def ends(self, number: int) -> list[tuple[str, str]]:
        """Return the two ends of a host's link to the bridge, each a namespace and a device."""
        return [(self.space(number), "eth"), (self.switch, f"port{number}")]

    def link(self, number: int, up: bool) -> None:
        """Cut a host off, or let it back in."""
        command("ip", "-n", self.space(number), "link", "set", "eth", "up" if up else "down")

    def die(self, number: int) -> None:
        """Let a host vanish without a word: its link first, then all that runs there."""
        self.link(number, False)
        for pid in command("ip", "netns", "pids", self.space(number)).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def line(self, number: int, *words: str) -> list[str]:
        """Return a command line that runs on a host, under this machine's own name."""
        return ["ip", "netns", "exec", self.space(number), *words]

    def close(self) -> None:
        """Take all hosts away, and whatever still runs there."""
        note = self._note()
        if note.exists():
            with suppress(ProcessLookupError):
                os.kill(int(note.read_text()), signal.SIGKILL)
            note.unlink()
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        there = set(spaces())
        for space in (*self.names(), self.switch):
            if space not in there:
                continue
            pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
            for pid in pids.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
            shutil.rmtree(NAMES / space, ignore_errors=True)


def spaces() -> list[str]:
    """Return the names of all namespaces."""
    return [line.split()[0] for line in command("ip", "netns", "list").splitlines() if line]
