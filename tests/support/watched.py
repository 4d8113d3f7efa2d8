"""A box with options of its own, the orders it takes, and workers that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from places import Place, spawn

from dlplatform.memorybox import wire

COMMAND = [sys.executable, "-m", "dlplatform.memorybox"]
HOLD = """
import time
def main(cluster, rank):
    cluster.join(rank, 2)
    buffer = cluster.buffer("w", 1 << 20, rank == 0)
    print("there", flush=True)
    time.sleep(60)
"""


@dataclass
class Here(Place):
    metrics: str = ""


Start = Callable[..., tuple[subprocess.Popen[str], Here]]


@pytest.fixture
def box() -> Iterator[Start]:
    """Start a box with options; return it, and where it is."""
    with ExitStack() as stack:

        def start(*options: str, bind: str = "tcp://127.0.0.1:0") -> Any:
            process = stack.enter_context(running(bind, *options))
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            place = Here("box", ready["addresses"], "s3cret", metrics=ready.get("metrics", ""))
            return process, place

        yield start


@contextmanager
def running(bind: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "--bind", bind, *options], env={**os.environ, wire.SECRET: "s3cret"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        yield process
        process.kill()


def order(place: Place, command: str = "status") -> dict[str, Any]:
    """Give an order as ``dlp box VERB`` does."""
    with wire.connect(place.addresses[0], 5) as link:
        wire.introduce(link, place.secret.encode(), "box")
        wire.send(link, {"do": f"box/{command}"})
        reply = wire.receive(link)
    if "ok" not in reply:
        raise wire.refusal(reply)
    return dict(reply["ok"])


def hold(place: Place, job: str, count: int, code: str = HOLD) -> list[subprocess.Popen[str]]:
    """Start workers, and wait until each has said that it is there."""
    workers = [spawn(Place("", place.addresses, place.secret), job, code, n) for n in range(count)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "there\n"
    return workers


def kill(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.communicate()
