"""A text file of a user's as one string."""

from __future__ import annotations

from pathlib import Path

from dlplatform.errors import UsageError


def read_text(path: Path, least: int = 1) -> str:
    """Return the text of a UTF-8 file, with line ends as on Unix.

    Raises:
        UsageError: when it cannot be read, is not UTF-8, or has fewer than ``least`` characters.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 at byte {error.start} ({error.reason}) - allowed: a text file in "
            "UTF-8 - do: convert it, as with iconv -t UTF-8"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}) - allowed: a text file - do: check the path"
        ) from error
    if len(text) < least:
        raise UsageError(
            f"{path} has {len(text)} characters - allowed: {least} or more - do: take a longer text"
        )
    return text
