"""Faces: where they are, and where eyes, nose and mouth are in them."""

from __future__ import annotations

from trainers.face import detection

__all__ = ["detection"]
