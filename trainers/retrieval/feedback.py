"""Feedback of a user on a search, from a file: which of the pictures found are relevant.

Source: the patent on few-shot retrieval, claims 6 and 13.
"""

from __future__ import annotations

from pathlib import Path

from trainers.data.requests import read_request, refused

ALLOWED = '{"picture": "query.png", "relevant": [true, false, ...]}, a flag for each picture found'


def read_feedback(raw: Path) -> tuple[Path, list[bool]]:
    """Return the picture to search for, and which of its results are relevant (none: not said).

    A picture file is its own picture; a path in a JSON file counts from that file's folder.

    Raises:
        UsageError: for a JSON file that says something else.
    """
    if raw.suffix.lower() != ".json":
        return raw, []
    asked = read_request(raw, ALLOWED, picture=str, relevant=list)
    missing = [name for name in ("picture", "relevant") if name not in asked]
    if missing:
        raise refused(raw, f"no {missing[0]}", ALLOWED)
    flags = asked["relevant"]
    if not flags or not all(isinstance(flag, bool) for flag in flags):
        raise refused(raw, f"relevant={flags}"[:60], ALLOWED)
    return raw.parent / asked["picture"], flags
