"""Box processes that are stopped, killed and started again at the same address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dlplatform.memorybox import wire

GRACE_S = 6.0
"""Longer than workers and boxes are stopped here: only the killed are given up."""


class Box:
    """One box with its folder.

    Args:
        bind: address; tcp port 0 becomes the port it got.
        secret: of the job.
        options: of ``dlp box``.
        program: what Python runs instead of a box as it is.
        env: more environment variables.
        stderr: an open file for what it complains about.
    """

    def __init__(
        self, bind: str, secret: str, options: Sequence[str] = (),
        program: Sequence[str] = ("-m", "dlplatform.memorybox"), env: dict[str, str] | None = None,
        stderr: IO[str] | None = None,
    ) -> None:  # fmt: skip
        self.stderr = stderr
        self.address, self.secret, self.options = bind, secret, list(options)
        self.program, self.env = program, {**os.environ, **(env or {}), wire.SECRET: secret}
        self.restarts = 0
        self._lock = threading.Lock()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *self.program, "--bind", self.address, "--lifeline", *self.options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True,
            start_new_session=True, env=self.env,
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the box at {self.address} did not start: {self._reason()}")
        self.address = str(json.loads(line)["address"])
        return process

    def _reason(self) -> str:
        if self.stderr is None:
            return "see above"
        self.stderr.seek(0)
        return self.stderr.read()[-2000:]

    def restart(self, pause_s: float = 0.0) -> None:
        """Kill it, and start it again a little later."""
        with self._lock:
            self.kill()
            time.sleep(pause_s)
            self.process = self._start()
            self.restarts += 1

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.wait()
        for end in (self.process.stdin, self.process.stdout):
            if end is not None:
                end.close()

    def pause(self, seconds: float) -> None:
        """Stop it for a while."""
        with self._lock:
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.process.send_signal(signal.SIGCONT)

    def order(self, command: str) -> dict[str, Any]:
        """Ask for ``status`` or ``snapshot`` as ``dlp box`` does."""
        with wire.connect(self.address, 5.0) as link:
            wire.introduce(link, self.secret.encode(), self.address)
            link.settimeout(30.0)
            wire.send(link, {"do": f"box/{command}"})
            answer = wire.receive(link)
        if "ok" not in answer:
            raise wire.refusal(answer)
        result: dict[str, Any] = answer["ok"]
        return result

    def memory(self) -> int:
        """Return the bytes of RAM it has, without its segments."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no RssAnon in /proc")

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self.process.send_signal(signal.SIGCONT)
        self.kill()
