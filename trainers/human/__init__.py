"""People: what they do and how they stand."""

from __future__ import annotations

from trainers.human import sensors

__all__ = ["sensors"]
