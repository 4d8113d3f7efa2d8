"""Requests: small JSON files in which a user asks a trained network for something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlplatform.errors import UsageError


def read_request(raw: Path, allowed: str, **kinds: type) -> dict[str, Any]:
    """Return the object in a JSON file, which has one of these keys at least, each of its kind.

    Numbers are never below zero. Raises UsageError with what is ``allowed`` for anything else.
    """
    try:
        asked = json.loads(raw.read_text())
    except (OSError, ValueError) as error:
        raise refused(raw, f"no JSON ({error})", allowed) from error
    named = asked.keys() & kinds if isinstance(asked, dict) else set()
    good = all(isinstance(asked[name], kinds[name]) for name in named)
    if not (named and good and all(asked[n] >= 0 for n in named if kinds[n] is int)):
        raise refused(raw, json.dumps(asked)[:60], allowed)
    found: dict[str, Any] = asked
    return found


def refused(raw: Path, what: str, allowed: str) -> UsageError:
    """Return the error for a file that holds something else."""
    return UsageError(f"{raw} holds {what} - allowed: {allowed} - do: change the file")
