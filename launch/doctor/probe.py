"""The doctor's ear on another host: ``python -m launch.doctor.probe``, started over ssh.

It answers line by line, in JSON: what it finds, its clock, how far and how fast other hosts are.
Who connects to its port must show the token that came over its standard input; it ends when that
does.
"""

from __future__ import annotations

import hmac
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from dlplatform.world import World

TOKEN, PATIENCE_S = 32, 5.0
TURNS, PART, SOME_S = 20, 1 << 18, 0.5
Answer = dict[str, Any]


class Probe:
    """One host's answers."""

    def __init__(self) -> None:
        self.token = b""
        self.listener = socket.create_server(("", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def hello(self, token: str) -> Answer:
        """Say what is here, and where to connect."""
        from launch.doctor import findings

        self.token = token.encode()
        port = self.listener.getsockname()[1]
        return {"node": World().node, "port": port, "findings": [asdict(f) for f in findings()]}

    def clock(self) -> Answer:
        """Say what time it is."""
        return {"time": time.time()}

    def reach(self, host: str, port: int) -> Answer:
        """Connect to another host; measure a round trip and how fast bytes go there."""
        try:
            with socket.create_connection((host, port), PATIENCE_S) as link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.sendall(self.token)
                return {"rtt_s": self._round_trip(link), "rate": self._rate(link)}
        except OSError as error:
            return {"error": error.strerror or str(error)}

    def _round_trip(self, link: socket.socket) -> float:
        times = []
        for _ in range(TURNS):
            begin = time.perf_counter()
            link.sendall(b"e")
            if link.recv(1) != b"e":
                raise ConnectionResetError("it hung up")
            times.append(time.perf_counter() - begin)
        return min(times)

    def _rate(self, link: socket.socket) -> float:
        part, sent, begin = b"d" * PART, 0, time.perf_counter()
        while time.perf_counter() - begin < SOME_S:
            link.sendall(part)
            sent += PART
        link.sendall(b"e")
        link.recv(1)  # all that went before has arrived
        return sent / (time.perf_counter() - begin)

    def _accept(self) -> None:
        while True:
            link, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link, suppress(OSError):
            link.settimeout(PATIENCE_S)
            shown = b""
            while len(shown) < TOKEN and (part := link.recv(TOKEN - len(shown))):
                shown += part
            if not self.token or not hmac.compare_digest(shown, self.token):
                return
            while data := link.recv(PART):
                if b"e" in data:
                    link.sendall(b"e")


def main() -> None:
    """Answer until standard input ends."""
    probe = Probe()
    asked: dict[str, Callable[..., Answer]] = {
        "hello": probe.hello, "clock": probe.clock, "reach": probe.reach
    }  # fmt: skip
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(asked[question.pop("do")](**question)), flush=True)


if __name__ == "__main__":
    main()
