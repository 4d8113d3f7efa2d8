"""Meta-data of a labelled set: the distances between its pictures, as a network sees them.

Shape legend: B batch, C channels, H height, W width, N pictures, D size of an embedding.
Source: the patent on few-shot retrieval, claims 1 and 9 and par. [0021].
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlplatform.errors import UsageError
from trainers.blocks.metric import squared_distances
from trainers.data.samples import Samples
from trainers.scores.retrieval import separability

CHUNK = 128
Embed = Callable[[Tensor], Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistanceInfo:
    """Squared distances between all pictures of a set (N, N), and their labels."""

    square_NN: Tensor
    labels: Tensor

    @property
    def ratio(self) -> float:
        """Return the mean distance within a class over that between classes."""
        return separability(self.square_NN, self.labels)

    def save(self, path: Path) -> None:
        """Write it to an npz file."""
        with path.open("wb") as file:
            np.savez(file, square=self.square_NN.numpy(), labels=self.labels.numpy())

    @staticmethod
    def load(path: Path) -> DistanceInfo:
        """Return what ``save`` wrote; raises UsageError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return DistanceInfo(*(torch.from_numpy(file[key]) for key in ("square", "labels")))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UsageError(
                f"{path} holds no distances ({error}) - allowed: a file that DistanceInfo.save "
                "wrote - do: compute them again"
            ) from error


@dataclass(frozen=True)
class MetaDataset:
    """Pictures with labels, and what distances a network puts between them."""

    samples: Samples

    def distance_info(self, embed: Embed) -> DistanceInfo:
        """Return the distances as a network sees them now."""
        z_ND = embedded(embed, self.samples.pair()[0])
        square = squared_distances(z_ND, z_ND).fill_diagonal_(0)
        return DistanceInfo(square.cpu(), self.samples.labels)

    def shared_classes(self, other: MetaDataset) -> list[str]:
        """Return the names of classes that both sets have, with a warning if there are any."""
        mine, theirs = (
            {part.samples.names[k] for k in set(part.samples.labels.tolist())}
            for part in (self, other)
        )
        shared = sorted(mine & theirs)
        if shared:
            log.warning(
                "source and target share %d classes (%s): few-shot scores will flatter",
                len(shared), ", ".join(shared[:5]),
            )  # fmt: skip
        return shared


def embedded(embed: Embed, x_NCHW: Tensor) -> Tensor:
    """Return z_ND of many pictures, computed in chunks without gradients."""
    with torch.no_grad():
        return torch.cat([embed(x_BCHW) for x_BCHW in torch.split(x_NCHW, CHUNK)])
