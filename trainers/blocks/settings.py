"""Checks of a task's settings; without torch, since the command line runs them at once."""

from __future__ import annotations

from dlplatform.errors import UsageError


def check(name: str, value: object, good: bool, allowed: str) -> None:
    """Refuse a setting of a task that cannot work."""
    if not good:
        raise UsageError(
            f"task.{name}={value} cannot work - allowed: {allowed} - do: change task.{name}"
        )
