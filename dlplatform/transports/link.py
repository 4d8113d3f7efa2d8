"""Link: numbered requests to one box over authenticated conduits that may break and come back.

A lane is a row of requests, one after the other, over one conduit at a time. When the conduit
breaks, the lane connects again and sends its last request again; the box knows the number and
does not do it twice.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dlplatform.errors import BoxError, PeerLost, PlatformError
from dlplatform.memorybox import wire
from dlplatform.memorybox.box import COMMANDS
from dlplatform.transports.conduit import SLICE_MS, Conduit, Dial, dial_socket
from dlplatform.transports.transport import Entrance
from kernels import cpu

ATTEMPT_S, PAUSE_S = 5.0, 0.05
CHUNK_BYTES = 4 * cpu.CHUNK
Frame = dict[str, Any]
Work = Callable[[Conduit, bool], Frame]
NumberedWork = Callable[[Conduit, Frame, bool], Frame]


class _Progress(ctypes.Array[ctypes.c_size_t]):
    """Bytes sent, received, prepared."""

    _length_, _type_ = 3, ctypes.c_size_t


class Lane:
    """One row of requests; used by one thread at a time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sequence = self.acknowledged = 0
        self.conduit: Conduit | None = None
        self.holds_locks = False

    def drop(self) -> None:
        """Close what is broken."""
        if self.conduit is not None:
            self.conduit.close()
            self.conduit = None


class Link:
    """The lanes to one box: one in use per thread at a time, made when needed and kept.

    Args:
        uri: the box.
        entrance: job, secret, token, patience; and perhaps where the box is mirrored.
        dial: makes a new connection to the box.
    """

    def __init__(self, uri: str, entrance: Entrance, dial: Dial = dial_socket) -> None:
        self.uri, self.entrance, self.timeout_s = uri, entrance, entrance.timeout_s
        self.dial = dial
        self.home, self.mirror = uri, entrance.mirrors.get(uri, "")
        self.lost = ""
        self.can: frozenset[str] = frozenset()
        self._instance, self._lasting = "", False
        self._idle: list[Lane] = []
        self._lanes: list[Lane] = []
        self._lock, self._lease_lock = threading.Lock(), threading.RLock()
        self._own = threading.local()
        self._closed = False
        self._lease = self._lane()
        self.reach(self._lease)
        self._watcher = threading.Thread(target=self._watch, name="watch box", daemon=True)
        self._watcher.start()

    # -- connections -----------------------------------------------------------------------

    def _lane(self) -> Lane:
        with self._lock:
            self._lanes.append(Lane(len(self._lanes)))
            return self._lanes[-1]

    def _open(self, lane: Lane) -> Conduit:
        patience = min(ATTEMPT_S, self.timeout_s) if self._instance else self.timeout_s
        link = self.dial(self.home, 1.0 if self.mirror else patience, self.entrance.ca)
        try:
            wire.introduce(link, self.entrance.secret, self.home)
            asked = self.entrance.opening(lane.number, lane is self._lease_or(lane))
            if self.mirror:
                if self.home == self.uri:
                    asked["replicated"] = [self.uri, self.mirror]
                else:
                    asked["mirror"] = self.uri
            answer = self.request(link, "open", asked)
            if answer.get("moved"):
                self.home = self.mirror
                raise ConnectionAbortedError("the workers have gone over to the mirror")
            self._recognise(answer, lane, link.near)
            link.settimeout(self.timeout_s)
        except BaseException:
            link.close()
            raise
        return link

    def _lease_or(self, lane: Lane) -> Lane:
        return getattr(self, "_lease", lane)

    def _recognise(self, answer: Frame, lane: Lane, near: bool) -> None:
        """Make sure that the box still knows what it has acknowledged."""
        again = self._instance and self.home == self.uri and answer["instance"] != self._instance
        mapped = near and "map" in self.can  # memory of the one before
        forgotten = mapped or not answer["lasting"]
        if (again and forgotten) or answer["taken"] < lane.acknowledged:
            self.lose("it was started again and has forgotten what it acknowledged")
            raise PeerLost(self.lost)
        self._instance, self._lasting = answer["instance"], bool(answer["lasting"])
        self.can = frozenset(answer["can"])

    def reach(self, lane: Lane) -> Conduit:
        """Return the conduit of a lane; connect again, patiently, if it broke."""
        end = time.monotonic() + self.timeout_s
        while lane.conduit is None:
            if self.lost or self._closed:
                raise PeerLost(self.lost or f"memory box {self.uri}: closed here")
            home = self.home
            try:
                lane.conduit = self._open(lane)
            except PlatformError:
                raise
            except (OSError, ValueError) as error:
                self._unreachable(error, end, home)
        return lane.conduit

    def _unreachable(self, error: Exception, end: float, home: str) -> None:
        if not self._instance:
            raise PeerLost(
                f"no memory box answers at {self.uri}: {error} - allowed: the address that "
                "dlp box printed - do: start it there (dlp box --bind ...) or correct the address"
            ) from None
        if self.mirror and home != self.mirror:
            self.home = self.mirror  # another thread may have found out at the same time
            return
        absent = isinstance(error, ConnectionRefusedError | FileNotFoundError)
        if (absent and not self._lasting) or time.monotonic() > end or self._closed:
            self.lose(str(error))
            raise PeerLost(self.lost) from None
        time.sleep(PAUSE_S)

    def take(self) -> Lane:
        """Return a lane for this thread alone, until ``give``."""
        if self.lost:
            raise PeerLost(self.lost)
        kept: Lane | None = getattr(self._own, "lane", None)
        if kept is not None:
            return kept
        with self._lock:
            lane = self._idle.pop() if self._idle else None
        return lane or self._lane()

    def give(self, lane: Lane) -> None:
        """Take a lane back."""
        if getattr(self._own, "lane", None) is not lane:
            with self._lock:
                self._idle.append(lane)

    @contextmanager
    def keeping(self) -> Iterator[Lane]:
        """Let this thread use one lane only: its connection holds locks."""
        lane = self.take()
        self._own.lane = lane
        try:
            yield lane
        finally:
            self._own.lane, lane.holds_locks = None, False
            self.give(lane)

    def _watch(self) -> None:
        """Notice the end of the lease at once, and connect again."""
        while not self._closed and not self.lost:
            link = self._lease.conduit
            if link is not None:
                link.ended()
            with self._lease_lock, suppress(PlatformError, OSError, ValueError):
                if self._lease.conduit is link:
                    self._lease.drop()
                self.reach(self._lease)

    def lose(self, reason: str) -> None:
        """Remember why the box is out of reach."""
        self.lost = self.lost or (
            f"memory box {self.uri} is gone: {reason} - allowed: boxes that outlive the job - "
            "do: start the boxes again and continue with resume=auto"
        )

    # -- requests ------------------------------------------------------------------------

    def request(self, link: Conduit, command: str, fields: Frame) -> Frame:
        """Send a frame and wait for its reply."""
        return self._ask(link, {**fields, "do": command})

    def reply(self, link: Conduit) -> Frame:
        """Wait for a reply; raise the error of a refusal."""
        frame = wire.receive(link)
        if "ok" not in frame:
            raise wire.refusal(frame)
        result: Frame = frame["ok"]
        return result

    def perform(self, lane: Lane, work: Work) -> Frame:
        """Do a request, again after every break, until it is answered or the box is lost."""
        again, end = False, time.monotonic() + self.timeout_s
        while True:
            link = self.reach(lane)
            try:
                return work(link, again)
            except PlatformError:
                raise
            except OSError as error:
                lane.drop()
                if self._closed:
                    raise PeerLost(f"memory box {self.uri}: closed here") from None
                if lane.holds_locks:
                    raise BoxError(
                        f"memory box {self.uri}: the connection broke while it held a lock: "
                        f"{error} - allowed: none - do: lock again, and look at the data first"
                    ) from None
                if again and time.monotonic() > end:
                    self.lose(str(error))
                again = True

    @contextmanager
    def borrowed(self) -> Iterator[Lane]:
        """Lend a lane."""
        lane = self.take()
        try:
            yield lane
        finally:
            self.give(lane)

    def call(self, command: str, fields: Frame, lane: Lane | None = None) -> Frame:
        """Have the box obey a command, once."""
        if lane is None:
            with self.borrowed() as lent:
                return self.call(command, fields, lent)
        frame = {**fields, "do": command}
        return self._once(lane, frame, lambda link, numbered, _: self._ask(link, numbered))

    def _once(self, lane: Lane, frame: Frame, work: NumberedWork) -> Frame:
        """Do a request that changes something, under the lane's next number."""
        lane.sequence += 1
        numbered = {**frame, "seq": lane.sequence}
        answer = self.perform(lane, lambda link, again: work(link, numbered, again))
        lane.acknowledged = lane.sequence
        return answer

    def _ask(self, link: Conduit, frame: Frame) -> Frame:
        wire.send(link, frame)
        return self.reply(link)

    def ask(self, command: str, fields: Frame) -> Frame:
        """Have the box obey a command that changes nothing: it needs no number."""
        with self.borrowed() as lane:
            return self.perform(lane, lambda link, _: self.request(link, command, fields))

    def lease(self, command: str, fields: Frame) -> Frame:
        """Have the box obey a command on the connection that stands for this worker."""
        if self.lost:
            raise PeerLost(self.lost)
        with self._lease_lock:
            return self.call(command, fields, self._lease)

    # -- bytes ---------------------------------------------------------------------------

    def pull(self, frame: Frame, into: int) -> None:
        """Send a frame and receive the bytes of its elements."""

        def work(link: Conduit, _: bool) -> Frame:
            wire.send(link, frame)
            reply = self.reply(link)
            self._move(link, (0, 0, into, 4 * frame["count"]), _Progress())
            return reply

        with self.borrowed() as lane:
            self.perform(lane, work)

    def push(self, frame: Frame, parts: list[tuple[int, int]], unit: int) -> None:
        """Send an update: a frame and its payload; ``unit`` bytes for 256 elements, or 0.

        ``parts`` are (address, bytes). With unit 0 (sparse) a repeated update is sent whole.
        """

        def work(link: Conduit, numbered: Frame, again: bool) -> Frame:
            done = 0
            if again:
                wire.send(link, {**numbered, "received": 0})
                answer = wire.receive(link)
                if answer.get("finished"):
                    return self.reply(link)
                done = int(answer.get("done", 0)) * unit // cpu.BLOCK8
            else:
                wire.send(link, numbered, more=bool(parts))
            for address, size in parts:
                skip = min(done, size)
                self._move(link, (address + skip, size - skip, 0, 0), _Progress())
                done -= skip
            return self.reply(link)

        with self.borrowed() as lane:
            self._once(lane, {**frame, "do": "push"}, work)

    def swap(self, frame: Frame, out: int, into: int, kind: int = cpu.NONE) -> None:
        """Send an update and its bytes, and receive as many at the same time.

        ``kind`` says what happens to the bytes on the way (see ``dlp_exchange``). The first
        bytes do not wait for the box's consent; it throws them away when it refuses.
        """
        size, progress = 4 * frame["count"], _Progress()

        def work(link: Conduit, numbered: Frame, again: bool) -> Frame:
            if not again:
                wire.send(link, numbered, more=size > 0)
                self._move(link, (out, min(size, wire.AHEAD), into, 0), progress, kind)
                self.reply(link)
            else:
                progress[1] -= progress[1] % CHUNK_BYTES
                wire.send(link, {**numbered, "received": progress[1] // 4})
                answer = wire.receive(link)
                progress[0] = 4 * int(answer.get("done", 0))
                if answer.get("finished") and not progress[0]:
                    return self.reply(link)  # refused
            self._move(link, (out, size, into, size), progress, kind)
            return self.reply(link)

        with self.borrowed() as lane:
            self._once(lane, {**frame, "do": "push"}, work)

    def _move(
        self, link: Conduit, what: tuple[int, int, int, int], done: _Progress,
        kind: int = cpu.NONE,
    ) -> None:  # fmt: skip
        """Move (out, bytes, in, bytes); TimeoutError after timeout_s without progress."""
        last, end = (-1, -1), 0.0
        at = ctypes.addressof(done)
        while not cpu.check(cpu.exchange(link.address, kind, *what, SLICE_MS, at)):
            if (now := (done[0], done[1])) != last:
                last, end = now, time.monotonic() + self.timeout_s
            elif time.monotonic() > end:
                raise TimeoutError(f"no byte moved for {self.timeout_s:g} s")

    def close(self) -> None:
        """Say goodbye and hang up everywhere."""
        self._closed = True
        with self._lock:
            lanes = list(self._lanes)
        for lane in lanes:
            if (conduit := lane.conduit) is not None:
                conduit.hang_up()
        self._watcher.join(1.0)
        for lane in lanes:
            lane.drop()


class Linked:
    """What every transport with a link leaves to it."""

    def __init__(self, link: Link) -> None:
        self.link = link

    @property
    def lost(self) -> str:
        """Return why the box is out of reach; empty while it is there."""
        return self.link.lost

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        if COMMANDS[command].changes:
            return self.link.call(command, fields)
        return self.link.ask(command, fields)

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Call on the connection that stands for this worker."""
        return self.link.lease(command, fields)
