"""Well-known networks on data that needs no download."""

from __future__ import annotations

from trainers.zoo import digits, shapes

__all__ = ["digits", "shapes"]
