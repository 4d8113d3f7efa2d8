"""Time: the clock a job lives by, and calls that happen later.

Rules, work and counters ask the clock of their cluster instead of the machine, so that the same
code runs in simulated time (``dlplatform/transports/simulated.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol


class Flow(Protocol):
    """What two threads of a worker wait on for each other, as ``threading.Condition`` does."""

    def __enter__(self) -> bool:
        """Take the lock."""

    def __exit__(self, *error: Any) -> None:
        """Give the lock back."""

    def wait_for(self, predicate: Callable[[], Any]) -> Any:
        """Wait until something is true."""

    def notify_all(self) -> None:
        """Have those who wait look again."""


class Pool(Protocol):
    """What runs calls beside the caller, as ``concurrent.futures.Executor`` does."""

    def submit(self, call: Callable[[], Any], /) -> Result:
        """Start a call."""

    def shutdown(self, wait: bool = True) -> None:
        """Take no more calls."""


class Result(Protocol):
    """A call under way."""

    def result(self) -> Any:
        """Wait for its end; return what it returned, or raise what it raised."""


class Clock:
    """The machine's own time and threads."""

    def now(self) -> float:
        """Return seconds since some moment in the past."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def flow(self) -> Flow:
        """Return a lock with a condition, for the threads of one worker."""
        return threading.Condition()

    def start(self, name: str, run: Callable[[], None]) -> Callable[[], None]:
        """Run something beside the caller; return what waits for its end."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread.join

    def pool(self, size: int) -> Pool:
        """Return what runs up to ``size`` calls beside the caller."""
        return ThreadPoolExecutor(size)


CLOCK = Clock()


def later(seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
    """Call something later, unless the process has ended by then."""
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()
