"""The tasks of the project; importing this package registers them all."""

from __future__ import annotations

from trainers import face, human, retrieval, road, speech, zoo

__all__ = ["face", "human", "retrieval", "road", "speech", "zoo"]
