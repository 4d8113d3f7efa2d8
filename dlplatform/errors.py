"""Errors a user can meet, each with the exit code of the process that ends with it.

A message is one line: what failed with its value - what is allowed - what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlatformError(Exception):
    """Base of all errors that end in one line instead of a traceback (exit code 1)."""

    exit_code = 1


class UsageError(PlatformError, ValueError):
    """Reject a value the user gave (exit code 2)."""

    exit_code = 2


class EnvironmentMissing(PlatformError):
    """Report something this machine lacks, with the remedy (exit code 3)."""

    exit_code = 3


class PeerLost(PlatformError, ConnectionError):
    """Report a memory box or a worker that is gone (exit code 4)."""

    exit_code = 4


class BoxError(PlatformError):
    """Report a request that a memory box refused; nothing changed in the box (exit code 2)."""

    exit_code = 2


class NotNow(BoxError):
    """Report a request that the box refuses for the moment: it may be made again."""


class Diverged(PlatformError):
    """Stop a training whose loss is not finite (exit code 5)."""

    exit_code = 5


class Preempted(PlatformError):
    """Stop after a checkpoint because SIGTERM or SIGUSR1 asked for it (exit code 75)."""

    exit_code = 75


def closest(word: str, allowed: Iterable[str]) -> str:
    """Return ``; closest: NAME`` for a mistyped word, or nothing when none is near."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; closest: {match[0]}" if match else ""
