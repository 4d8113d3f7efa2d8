"""What a hostile worker sends: mutated requests, payloads, records of a mirror, and noise."""

from __future__ import annotations

import ctypes
import hmac
import math
import random
import struct
from typing import Any

import msgpack

from kernels import cpu

Frame = dict[str, Any]
HUGE = (2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1, -(2**63), -1, -2, -65536)
ODD: tuple[Any, ...] = (
    *HUGE, 0, 1, 255, 256, 4999, 5000, 5001, 65536, 1 << 18, 1.5, -0.5, math.nan, math.inf,
    -math.inf, 1e308, True, None, "", "w", "a" * 300, "\0", "../..", "é" * 40, b"",
    b"\xff" * 40, [], [0], [""],
    [None] * 9, [[[]]], {}, {"a": 1}, {"": {"": {}}}, [1.0] * 20, [-1, -1, -1], [0, 0, 0],
    [math.nan] * 3, ["x", 2**63, [1]],
)  # fmt: skip
OPS = (*cpu.OPERATIONS, "axpby ", "", "matrix")
SLOW = ("prepare", "wait", "lock", "settled")
PAYLOAD, MOST = 1 << 16, 70_000
RECORD = 0x64726C64


class Mutator:
    """Requests that are nearly right, from one seed.

    Args:
        seed: of everything it makes.
        keys: segments of the job: two of 5000 elements, one of 70000.
    """

    def __init__(self, seed: str, keys: list[str]) -> None:
        self.rng, self.keys = random.Random(seed), keys
        self.noise = self.rng.randbytes(PAYLOAD * 4)

    # -- requests that are right -------------------------------------------------------------

    def span(self) -> tuple[int, int]:
        """Return a span of a segment."""
        start = self.rng.randrange(5000)
        return start, self.rng.randint(0, 5000 - start)

    def command(self) -> Frame:
        """Return a command without bytes behind it."""
        rng, name = self.rng, f"n{self.rng.randrange(40)}"
        (start, count), key, other, third = self.span(), *rng.sample(self.keys, 3)
        whole = {"start": start, "count": count}
        return rng.choice((
            {"do": "create", "name": name, "floats": rng.choice((1, 1000, 1 << 18))},
            {"do": "allocate", "name": name, "floats": 1000},
            {"do": "attach", "key": key, "floats": 5000}, {"do": "release", "key": key},
            {"do": "free", "key": key}, {"do": "delete", "key": key},
            {"do": "join", "rank": rng.randrange(50)},
            {"do": "apply", "op": rng.choice(OPS), "keys": [key], "k": [0.5, 1.0], "source": other,
             **whole},
            {"do": "apply", "op": "adam", "keys": [key, other, third], "k": [0.1] * 6, **whole,
             "source": other},
            {"do": "total", "key": key, "sources": [other, key], "scale": 0.5, **whole},
            {"do": "average", "sources": [other, key], "scale": 0.5, **whole},
            {"do": "matrix", "keys": [key, other, third], "shape": [10, 20, 30], "a": 1.0,
             "b": 0.0},
            {"do": "changed", "key": key, "since": 0}, {"do": "status"},
            {"do": "slot", "name": name},
            {"do": "get", "name": name}, {"do": "set", "name": name, "value": 7},
            {"do": "add", "name": name, "n": 3},
            {"do": "swap", "name": name, "expected": 3, "desired": 4},
            {"do": "publish", "name": name, "value": [1, {"a": b"b"}]},
            {"do": "publish", "name": f"event/{name}", "value": {"expect": 1, "ranks": [0, 1]}},
            {"do": "lookup", "name": name}, {"do": "announce", "event": name},
            {"do": "commit", "newest": {"a/0": 1}}, {"do": "finish"}, {"do": "unlock"},
            {"do": "read", "key": key, **whole}, {"do": "read", "key": key, "cut": True, **whole},
            {"do": "map", "key": key}, {"do": "open", "job": "other", "token": "t", "lane": "0"},
        ))  # fmt: skip

    def slow(self) -> Frame:
        """Return a command that others may have to wait for."""
        start, count = self.span()
        key = self.rng.choice(self.keys)
        if self.rng.random() < 0.03:  # holds all others back for some seconds
            return {"do": "prepare", "keys": [key], "ticket": "t"}
        return self.rng.choice((
            {"do": "settled", "ms": 5},
            {"do": "wait", "name": "n0", "at_least": 1 << 40, "ms": 5},
            {"do": "lock", "key": key, "start": start, "count": count},
        ))  # fmt: skip

    def push(self) -> Frame:
        """Return an update; its bytes follow."""
        rng, op = self.rng, self.rng.choice(OPS)
        (start, count), form = self.span(), rng.choice(list(cpu.FORMATS))
        form = rng.choice(ODD) if rng.random() < 0.005 else form
        frame: Frame = {
            "do": "push", "op": op, "start": start, "count": count, "format": form,
            "keys": rng.sample(self.keys, min(3, 1 + cpu.STATES.get(op, 0))), "k": [0.5, 1.0],
            "tag": [str(rng.randrange(3)), rng.randrange(1000), [0]],
        }  # fmt: skip
        if rng.random() < 0.02:
            frame["keys"], frame["k"] = rng.choice((ODD, self.keys)), rng.choice(ODD)
        if form == "topk":
            frame |= {"entries": rng.randint(0, count), "at": 0}
            if rng.random() < 0.1:
                frame["at"] = rng.choice(HUGE)
        return frame

    # -- and what becomes of them ------------------------------------------------------------

    def mutated(self, frame: Frame) -> Frame:
        """Change a field or two, or leave it right.

        Where nobody can tell how many bytes follow an update, a box hangs up: that must be rare.
        """
        rng = self.rng
        often = (0,) * 30 + (1, 2) if frame.get("do") == "push" else (0, 1, 1, 1, 2)
        for _ in range(rng.choice(often)):
            name = rng.choice(list(frame))
            if rng.random() < 0.1:
                frame.pop(name)
            elif rng.random() < 0.1:
                frame[rng.choice(("key", "keys", "count", "cut", "received", "seq"))] = rng.choice(
                    ODD
                )
            elif name != "do" or rng.random() < 0.1:
                frame[name] = rng.choice(ODD)
            if not frame:
                break
        return frame

    def payload(self, frame: Frame) -> bytes:
        """Return about as many bytes as the box will expect behind an update."""
        count, entries, form = (frame.get(n) for n in ("count", "entries", "format"))
        entries = entries or 0
        numbers = isinstance(count, int) and isinstance(entries, int)
        if not numbers or not isinstance(form, str) or form not in cpu.FORMATS:
            return b""
        if not 0 <= count <= MOST or not 0 <= entries <= MOST:
            return b""
        count, entries = int(count), int(entries)
        size = min(cpu.payload_bytes(cpu.FORMATS[form], count, entries), len(self.noise))
        if form == "topk" and entries and self.rng.random() < 0.97:
            positions = sorted(self.rng.sample(range(max(count, entries)), entries))
            if self.rng.random() < 0.03:
                positions[self.rng.randrange(entries)] = self.rng.choice(
                    (0, 2**32 - 1, 5000, count)
                )
            return struct.pack(f"<{entries}I", *positions) + self.noise[: 4 * entries]
        at = self.rng.randrange(len(self.noise) - size + 1)
        return self.noise[at : at + size]

    def batch(self, count: int, slowly: bool) -> tuple[bytes, int]:
        """Return many requests in a row, and how many of them others may wait for."""
        parts, waits = [], 0
        for sequence in range(1, count + 1):
            kind = self.rng.random()
            if slowly and kind < 0.05:
                frame, waits = self.slow(), waits + 1
            else:
                frame = self.push() if kind < 0.45 else self.command()
            right = frame["do"]
            frame = self.mutated(frame | {"seq": sequence})
            if frame.get("do") in SLOW and not slowly:
                frame["do"] = "get"
            body = msgpack.packb(frame)
            parts.append(struct.pack("<I", len(body)) + body)
            if right == "push":
                parts.append(self.payload(frame))
        return b"".join(parts) + self.end(), waits

    def end(self) -> bytes:
        """Return what makes no sense at all; a box hangs up there."""
        rng = self.rng
        body = bytearray(msgpack.packb(self.push()))
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        return rng.choice((
            struct.pack("<I", len(body)) + bytes(body), struct.pack("<I", len(body) + 9) + body,
            rng.randbytes(rng.randint(1, 400)), b"\xff" * 4, b"\0" * 4,
            struct.pack("<I", 1 << 20) + self.noise[:5000], b"\1\0\0\0\xc1",
        ))  # fmt: skip

    def opening(self, job: str, token: str) -> Frame:
        """Return the first request of a connection."""
        frame: Frame = {"do": "open", "job": job, "token": token, "lane": "0", "lease": True}
        if self.rng.random() < 0.05:
            frame[self.rng.choice(("job", "token", "lane", "lease", "mirror", "replicated"))] = (
                self.rng.choice((*ODD, ["tcp://127.0.0.1:1"], ["tcp://127.0.0.1:1", "shm://none"]))
            )
        return frame

    # -- without the secret, and as a box ----------------------------------------------------

    def stranger(self, nonce: bytes) -> bytes:
        """Return what somebody sends who does not know the secret."""
        rng = self.rng
        proof = hmac.digest(rng.randbytes(8), b"worker" + nonce, "sha256")
        greeting: Any = rng.choice((
            {"nonce": rng.randbytes(32), "proof": proof}, {"nonce": b"", "proof": b""},
            {"nonce": nonce, "proof": nonce}, {"proof": rng.choice(ODD)}, rng.choice(ODD),
            {"nonce": rng.choice(ODD), "proof": rng.choice(ODD)}, self.command(), self.push(),
            self.opening("witness", "stranger"),
        ))  # fmt: skip
        body = msgpack.packb(greeting)
        if rng.random() < 0.2:
            return self.end()
        request = msgpack.packb(self.command() | {"seq": 1})
        return struct.pack("<I", len(body)) + body + struct.pack("<I", len(request)) + request

    def records(self, count: int) -> bytes:
        """Return what a hostile box sends to its mirror."""
        parts, key = [], "0" * 32
        first = {"do": "create", "fields": {"name": "w", "floats": 5000, "key": key}}
        for number in range(1, count + 1):
            head: Frame = {"token": "t", "lane": "t/0", "seq": number}
            body, at, n = b"", 0, 0
            if number == 1 or self.rng.random() < 0.3:
                head |= first if number == 1 else {"do": "add", "fields": {"name": "n", "n": 1}}
            else:
                n = self.rng.choice((5000, 100))
                order = cpu.operation(self.rng.choice(list(cpu.OPERATIONS)), (0.5, 1.0))
                head |= {"op": bytes(order), "keys": [key], "start": 0, "count": n, "from": 0,
                         "epoch": 0}  # fmt: skip
                body = self.noise[: 4 * n]
            if number > 1 and self.rng.random() < 0.5:
                head = self.mutated(head)
                at, n = (self.rng.choice((x, x, *HUGE)) % 2**64 for x in (at, n))
            packed = msgpack.packb(head)
            record = cpu.Record(RECORD, len(packed), len(body), at, n)
            record.sum = cpu.record_sum(ctypes.addressof(record), packed, body)
            parts.append(bytes(record) + packed + body)
        return b"".join(parts)
