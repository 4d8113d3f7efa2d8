"""The tasks of the project; importing this package registers them all."""

from __future__ import annotations

from trainers import zoo

__all__ = ["zoo"]
