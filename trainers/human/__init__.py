"""People: what they do and how they stand."""

from __future__ import annotations

from trainers.human import instances, sensors

__all__ = ["instances", "sensors"]
