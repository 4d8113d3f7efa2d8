"""What other packages add: tasks, rules, launchers, under entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points


@cache
def plugins(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points ``dlplatform.GROUP``; once, since every package is read for it."""
    return tuple(entry_points(group=f"dlplatform.{group}"))
