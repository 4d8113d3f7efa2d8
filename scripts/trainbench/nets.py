"""The networks of the comparison: two that communicate much, one that computes, one for GPUs.

Shape legend: B batch, C channels, H height, W width, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.nets.convnet import DeepDigitCNN, he_init

SIDE, CLASSES, BATCHES = 28, 10, 8
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Net:
    """A network, its minibatch, the steps of one turn, and what ssgd must reach beside DDP."""

    title: str
    build: Callable[[], nn.Module]
    batch: int
    steps: int
    required: float


def wide() -> nn.Module:
    """Return a multilayer perceptron 784-2048-2048-10: 5.8 million parameters, little to do."""
    hidden = 2048
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE * SIDE, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
        nn.ReLU(), nn.Linear(hidden, CLASSES),
    )  # fmt: skip


def vgg() -> nn.Module:
    """Return a small VGG: two blocks of 3x3 filters, then large dense layers."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1), nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        ]  # fmt: skip
    flat, hidden = 32 * (SIDE // 4) ** 2, 2048
    dense = [nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers, *dense, nn.ReLU(), nn.Linear(hidden, CLASSES))


class Transformer(nn.Module):
    """A vision transformer on patches of 2 x 2: 8 layers of 512 features, 25 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        features = 512
        self.patches = nn.Conv2d(1, features, 2, stride=2)
        layer = nn.TransformerEncoderLayer(features, 8, 4 * features, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits."""
        x_BTD = self.patches(x_BCHW).flatten(2).transpose(1, 2)
        return self.head(self.layers(x_BTD).mean(1))


NETS = {
    "mlp": Net("MLP 784-2048-2048-10, batch 32", wide, 32, 16, 1.1),
    "vgg": Net("small VGG, dense layers of 2048, batch 32", vgg, 32, 16, 1.1),
    "cnn": Net("CNN of zoo/digits, batch 64", DeepDigitCNN, 64, 8, 0.98),
    "gpu": Net("transformer of 25 million parameters, batch 64", Transformer, 64, 8, 1.1),
}


def make(name: str, seed: int) -> nn.Module:
    """Return a network with the weights of a seed."""
    torch.manual_seed(seed)
    net = NETS[name].build()
    he_init(net)
    return net


def batches(name: str, rank: int, device: str = "cpu") -> list[Batch]:
    """Return minibatches of noise, a rank's own."""
    rng, count = torch.Generator().manual_seed(rank), NETS[name].batch
    return [
        (
            torch.rand(count, 1, SIDE, SIDE, generator=rng).to(device),
            torch.randint(CLASSES, (count,), generator=rng).to(device),
        )
        for _ in range(BATCHES)
    ]


def size(name: str) -> int:
    """Return the bytes of a network's weights in fp32."""
    return 4 * sum(p.numel() for p in NETS[name].build().parameters())
