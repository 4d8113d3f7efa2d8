"""Well-known networks on data that needs no download."""

from __future__ import annotations

from trainers.zoo import digits

__all__ = ["digits"]
