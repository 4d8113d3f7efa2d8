"""People: what they do and how they stand."""

from __future__ import annotations

from trainers.human import instances, pose, sensors, state

__all__ = ["instances", "pose", "sensors", "state"]
