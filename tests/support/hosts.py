"""Hosts for tests: network namespaces of ``scripts/hosts.py``, with names of this process's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liverun import command

ROOT = Path(__file__).resolve().parents[2]
HOSTS = str(ROOT / "scripts" / "hosts.py")
AGENT = f"{sys.executable} {HOSTS} enter"
NAMES = iter(f"t{os.getpid()}x{n}h" for n in range(1000))


def hosts(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``scripts/hosts.py``."""
    return subprocess.run([sys.executable, HOSTS, *words], capture_output=True, text=True)


@contextmanager
def some(count: int, *options: str) -> Iterator[list[str]]:
    """Make hosts for one test."""
    name = next(NAMES)
    made = hosts("up", str(count), "--name", name, "--subnet", "10.79.0", *options)
    assert made.returncode == 0, made.stderr
    try:
        yield made.stdout.strip().split(",")
    finally:
        assert hosts("down", "--name", name).returncode == 0


def on(host: str) -> list[str]:
    """Return the command lines of what runs on a host."""
    pids = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout
    return [command(int(pid)) for pid in pids.split()]
