"""An index of pictures by their embeddings: search, the same class, shards, a file.

Shape legend: N pictures, D size of an embedding.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlplatform.errors import UsageError
from trainers.blocks.metric import squared_distances
from trainers.blocks.settings import check
from trainers.data.meta import Embed, embedded
from trainers.scores.retrieval import ranked


@dataclass(frozen=True)
class Hit:
    """A picture that was found: its place in the database, its name, its class, how far it is."""

    place: int
    name: str
    label: str
    distance: float


@dataclass(frozen=True)
class Index:
    """Embeddings of length 1 with a name and a class each, in the order of the database."""

    z_ND: Tensor
    names: tuple[str, ...]
    labels: tuple[str, ...]

    @staticmethod
    def build(embed: Embed, x_NCHW: Tensor, names: Sequence[str], labels: Sequence[str]) -> Index:
        """Embed the pictures of a database, or of a shard of it."""
        return Index(embedded(embed, x_NCHW).cpu(), tuple(names), tuple(labels))

    @staticmethod
    def merged(shards: Sequence[Index]) -> Index:
        """Return the index of the whole database from those of its shards, in their order."""
        return Index(
            torch.cat([shard.z_ND for shard in shards]),
            tuple(name for shard in shards for name in shard.names),
            tuple(label for shard in shards for label in shard.labels),
        )

    def search(self, z_D: Tensor, count: int) -> list[Hit]:
        """Return the nearest pictures, nearest first; of equally near ones the earlier first."""
        check("nearest", count, count >= 1, "1 or more")
        square = squared_distances(z_D[None].cpu(), self.z_ND)
        order = ranked(square)[0, :count].tolist()
        return [
            Hit(place, self.names[place], self.labels[place], float(square[0, place].sqrt()))
            for place in order
        ]

    def same_class(self, z_D: Tensor, label: str) -> list[Hit]:
        """Return all pictures of a class, those nearest to a query first."""
        return [hit for hit in self.search(z_D, len(self.names)) if hit.label == label]

    def save(self, path: Path) -> None:
        """Write it to an npz file."""
        with path.open("wb") as file:
            np.savez(file, z=self.z_ND.numpy(), names=self.names, labels=self.labels)

    @staticmethod
    def load(path: Path) -> Index:
        """Return what ``save`` wrote; raises UsageError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                names, labels = (tuple(map(str, file[key])) for key in ("names", "labels"))
                return Index(torch.from_numpy(file["z"]), names, labels)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UsageError(
                f"{path} is no index ({error}) - allowed: a file that Index.save wrote - "
                "do: build it again"
            ) from error


def judged(z_ND: Tensor, support_MD: Tensor, labels: Tensor) -> Tensor:
    """Return the class of each embedding: that of the nearest mean of a few labelled ones."""
    known: Tensor = labels.unique()  # type: ignore[no-untyped-call]
    means_KD = torch.stack([support_MD[labels == label].mean(0) for label in known])
    return known[(z_ND @ torch.nn.functional.normalize(means_KD, dim=1).T).argmax(1)]
