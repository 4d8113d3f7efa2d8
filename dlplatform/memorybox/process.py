"""Boxes of a job: box processes on this host that end by themselves when the job ends."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from dlplatform.errors import EnvironmentMissing
from dlplatform.memorybox import wire


class Boxes:
    """Box processes started here; ``with Boxes(2) as boxes`` gives ``boxes.addresses``.

    Their secret (``boxes.secret``) travels in the environment, so that no file is left behind.

    Args:
        count: how many.
        transport: ``shm``, ``tcp``, ``tls`` or ``verbs`` (loopback).
        memory: where they take their memory (see ``dlp box --memory``).
        options: further options of ``dlp box``.
    """

    def __init__(
        self, count: int, transport: str = "shm", memory: str = "/dev/shm",
        options: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.secret, self.options = secrets.token_hex(32), list(options)
        self.processes: list[subprocess.Popen[str]] = []
        self._complaints: list[IO[str]] = []
        self.addresses: list[str] = []
        token = secrets.token_hex(4)
        try:
            for number in range(count):
                name = f"{token}-{number}" if transport == "shm" else "127.0.0.1:0"
                bind = f"{transport}://{name}"
                self.processes.append(self._start(bind, memory))
            self.addresses = [
                self._ready(process, complaints)
                for process, complaints in zip(self.processes, self._complaints, strict=True)
            ]
        except BaseException:
            self.stop()
            raise

    def command(self, bind: str, memory: str) -> list[str]:
        """Return the command line of one box."""
        return [
            *(sys.executable, "-m", "dlplatform.memorybox", "--bind", bind),
            *("--memory", memory, "--lifeline", *self.options),
        ]

    def _start(self, bind: str, memory: str) -> subprocess.Popen[str]:
        complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop; never full
        self._complaints.append(complaints)
        return subprocess.Popen(
            self.command(bind, memory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,  # Ctrl-C is for the workers; the lifeline ends the boxes
            env={**os.environ, wire.SECRET: self.secret},
        )

    def _ready(self, process: subprocess.Popen[str], complaints: IO[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            complaints.seek(0)
            reason = complaints.read().strip().splitlines() or ["no reason given"]
            text = reason[-1].removeprefix("dlp: error: ")
            raise EnvironmentMissing(text if process.wait() in (2, 3) else f"box: {text}")
        return str(json.loads(line)["address"])

    def stop(self) -> None:
        """Cut the lifelines; each box ends once its last worker has left."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                if process.stdin:
                    process.stdin.close()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
        for complaints in self._complaints:
            complaints.close()

    def __enter__(self) -> Boxes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
