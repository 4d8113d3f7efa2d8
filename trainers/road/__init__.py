"""What cars see: road scenes, pixel by pixel."""

from __future__ import annotations

from trainers.road import deformable

__all__ = ["deformable"]
