"""Search for pictures like a given one."""

from __future__ import annotations

from trainers.retrieval import fewshot

__all__ = ["fewshot"]
