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
        transport: ``shm``, ``tcp``, ``tls`` or ``verbs``.
        memory: where they take their memory (see ``dlp box --memory``).
        options: further options of ``dlp box``.
        host: where ``tcp`` and ``tls`` listen; nobody else reaches loopback.
        secret: theirs; empty: made up.
    """

    def __init__(
        self, count: int, transport: str = "shm", memory: str = "/dev/shm",
        options: Sequence[str] = (), host: str = "127.0.0.1", secret: str = "",
    ) -> None:  # fmt: skip
        self.secret = secret or secrets.token_hex(32)
        self.options, self.host = list(options), host
        self.processes: list[subprocess.Popen[str]] = []
        self._complaints: list[IO[str]] = []
        self.addresses: list[str] = []
        token = secrets.token_hex(4)
        try:
            for number in range(count):
                before, at = self.place(number)
                name = f"{token}-{number}" if transport == "shm" else f"{at}:0"
                line = [*before, *self.command(f"{transport}://{name}", memory)]
                line += ["--numa", f"{number}/{count}"] if count > 1 and not before else []
                self.processes.append(self._start(line))
            self.addresses = [
                self._ready(process, complaints)
                for process, complaints in zip(self.processes, self._complaints, strict=True)
            ]
        except BaseException:
            self.stop()
            raise

    def place(self, number: int) -> tuple[list[str], str]:
        """Return what starts a box's command line where it is to run, and its host there."""
        return [], self.host

    def environment(self) -> dict[str, str]:
        """Return the environment of the boxes."""
        return {**os.environ, wire.SECRET: self.secret}

    def command(self, bind: str, memory: str) -> list[str]:
        """Return the command line of one box."""
        return [
            *(sys.executable, "-m", "dlplatform.memorybox", "--bind", bind),
            *("--memory", memory, "--lifeline", *self.options),
        ]

    def _start(self, line: list[str]) -> subprocess.Popen[str]:
        complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop; never full
        self._complaints.append(complaints)
        return subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,  # Ctrl-C is for the workers; the lifeline ends the boxes
            env=self.environment(),
        )

    def _ready(self, process: subprocess.Popen[str], complaints: IO[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            complaints.seek(0)
            said = complaints.read().strip().splitlines() or ["no reason given"]
            own = [line for line in said if line.startswith("dlp: error: ")]
            text = (own or said)[-1].removeprefix("dlp: error: ")
            raise EnvironmentMissing(text if process.wait() in (2, 3) else f"box: {text}")
        return str(json.loads(line)["address"])

    def stop(self, patience_s: float = 5.0) -> None:
        """Cut the lifelines; each box ends once its last worker has left, or is killed."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                if process.stdin:
                    process.stdin.close()
        for process in self.processes:
            try:
                process.wait(patience_s)
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
