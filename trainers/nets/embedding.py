"""Networks that map a picture to a point of the unit sphere, for distances between pictures.

Shape legend: B batch, C channels, H height, W width, D size of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.convnet import MaxPool2d

GROUPS = 8


class Embedding(nn.Module):
    """Convolutions with GroupNorm, global average pooling, L2 normalisation: z_BD of x_BCHW.

    GroupNorm has no state that an inner loop of MAML would have to carry along. A ``head`` is a
    square matrix after the pooling, the identity at first: adapting it alone learns a
    Mahalanobis distance.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], head: bool = False) -> None:
        """Build one block a width; all but the last one halve the picture."""
        super().__init__()
        blocks: list[nn.Module] = []
        for number, width in enumerate(widths):
            blocks += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.GroupNorm(GROUPS, width),
                nn.ReLU(),
            ]
            if number < len(widths) - 1:
                blocks.append(MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, channels, bias=False) if head else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.eye_(self.head.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return z_BD of length 1 each."""
        pooled_BD = self.features(x_BCHW).mean((2, 3))
        return functional.normalize(self.head(pooled_BD), dim=1)


class CosineClassifier(nn.Module):
    """Logits scale * cos(w_k, f(x)) on top of an embedding.

    Source: Gidaris and Komodakis (2018); Chen et al., A Closer Look at Few-shot Classification
    (2019), Baseline++.
    """

    def __init__(self, embedding: nn.Module, size: int, classes: int, scale: float = 10.0) -> None:
        """Put ``classes`` directions of ``size`` values on an embedding."""
        super().__init__()
        self.embedding, self.scale = embedding, scale
        self.directions = nn.Parameter(torch.randn(classes, size) / size**0.5)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BK."""
        z_BD: Tensor = self.embedding(x_BCHW)
        return self.scale * z_BD @ functional.normalize(self.directions, dim=1).T
