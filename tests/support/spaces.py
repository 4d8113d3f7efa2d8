"""Hosts of a small cluster for MPI jobs: network namespaces with names of their own, and an agent
by which mpirun starts processes there as it would by ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

AGENT = """#!/bin/bash
while [[ $1 == -* ]]; do case $1 in -l|-p|-o) shift 2;; *) shift;; esac; done
host=$1; shift
exec ip netns exec "$host" unshare --uts bash -c "hostname $host; $*"
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Spaces:
    """``count`` hosts on one switch; ``agent`` is the program for mpirun."""

    def __init__(self, count: int, folder: Path) -> None:
        self.prefix = f"dlpmpi{os.getpid()}"
        self.switch, self.names = f"{self.prefix}sw", [f"{self.prefix}h{n}" for n in range(count)]
        self.agent = folder / "agent"
        self.agent.write_text(AGENT)
        self.agent.chmod(0o755)

    def open(self) -> None:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        lines = [f"10.91.0.{n + 1} {name}" for n, name in enumerate(self.names)]
        for number, name in enumerate(self.names):
            self._add(number, name)
            hosts = Path(f"/etc/netns/{name}/hosts")
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")

    def _add(self, number: int, name: str) -> None:
        ip("netns", "add", name)
        port = f"p{number}"
        veth = ("type", "veth", "peer", "name", "e1", "netns", name)
        ip("-n", self.switch, "link", "add", port, *veth)
        ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        ip("-n", name, "addr", "add", f"10.91.0.{number + 1}/24", "dev", "e1")
        for device in ("e1", "lo"):
            ip("-n", name, "link", "set", device, "up")

    def line(self, *words: str) -> tuple[str, ...]:
        """Return a command line that runs on the first host."""
        return (str(self.agent), self.names[0], "exec", *words)

    def close(self) -> None:
        for name in (self.switch, *self.names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


@contextmanager
def spaces(count: int, folder: Path) -> Iterator[Spaces]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = Spaces(count, folder)
    try:
        made.open()
        yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        made.close()
