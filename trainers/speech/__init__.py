"""Recognition of speech."""

from __future__ import annotations

from trainers.speech import digits

__all__ = ["digits"]
