"""What happens later: calls that wait without keeping the process alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def later(seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
    """Call something later, unless the process has ended by then."""
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()
