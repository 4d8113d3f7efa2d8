"""Image style transfer: a network that repaints, and frozen features that judge it.

Shape legend: B batch, C channels, H height, W width, L layers whose features count.
Sources: Gatys et al., Image Style Transfer Using Convolutional Neural Networks (2016);
Johnson et al., Perceptual Losses for Real-Time Style Transfer and Super-Resolution (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.data.weights import read_weights
from trainers.nets.convnet import he_init

CONVOLUTIONS = (2, 2, 3, 3)
"""In each block of the loss network, as in VGG-16 up to conv4_3."""
CONTENT = 1
"""The block whose features say what is to be seen: relu2_2."""
LOSS_SEED = 2015


def gram(features_BCHW: Tensor) -> Tensor:
    """Return the Gram matrices (B, C, C): products of channels, over C * H * W."""
    flat_BCN = features_BCHW.flatten(2)
    return flat_BCN @ flat_BCN.mT / flat_BCN[0].numel()


def total_variation(x_BCHW: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels."""
    down, right = x_BCHW.diff(dim=2), x_BCHW.diff(dim=3)
    return down.square().mean() + right.square().mean()


def recoloured(x_BCHW: Tensor, paintings_BCHW: Tensor) -> Tensor:
    """Return pictures with the mean and the spread of each colour of the paintings, and no more.

    Source: Reinhard et al., Color transfer between images (2001), in RGB.
    """
    spread_BC11, mean_BC11 = torch.std_mean(x_BCHW, (2, 3), keepdim=True)
    spread_1C11, mean_1C11 = torch.std_mean(paintings_BCHW, (0, 2, 3), keepdim=True)
    even_BCHW = (x_BCHW - mean_BC11) / (spread_BC11 + 1e-6)
    return (even_BCHW * spread_1C11 + mean_1C11).clamp(0, 1)


class Transform(nn.Module):
    """Repaint pictures of any size: y_BCHW in [0, 1] of x_BCHW in [0, 1].

    Args:
        width: channels of the first convolution; the paper has 32.
        residual: blocks in the middle; the paper has 5.
    """

    def __init__(self, width: int = 32, residual: int = 5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *_layer(3, width, 9),
            *_layer(width, 2 * width, 3, stride=2),
            *_layer(2 * width, 4 * width, 3, stride=2),
            *(Residual(4 * width) for _ in range(residual)),
            nn.Upsample(scale_factor=2),
            *_layer(4 * width, 2 * width, 3),
            nn.Upsample(scale_factor=2),
            *_layer(2 * width, width, 3),
            nn.ReflectionPad2d(4),
            nn.Conv2d(width, 3, 9),
            nn.Tanh(),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BCHW; sides that 4 does not divide are filled up, and cut again."""
        height, width = x_BCHW.shape[2:]
        whole_BCHW = functional.pad(x_BCHW, (0, -width % 4, 0, -height % 4), mode="replicate")
        y_BCHW: Tensor = self.net(whole_BCHW * 2 - 1)
        return (y_BCHW[:, :, :height, :width] + 1) / 2


class Residual(nn.Module):
    """Two convolutions whose result is added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = _layer(channels, channels, 3), _layer(channels, channels, 3)
        self.net = nn.Sequential(*first, *second[:-1])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return what came in, changed."""
        y_BCHW: Tensor = x_BCHW + self.net(x_BCHW)
        return y_BCHW


def _layer(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(before, after, kernel, stride),
        nn.InstanceNorm2d(after, affine=True),
        nn.ReLU(),
    ]


class Judge(nn.Module):
    """Frozen features as VGG-16's, and the style they are compared to: the mean of all paintings'.

    Args:
        paintings_BCHW: what to learn the style of, in [0, 1].
        width: channels of the first block; VGG has 64. Each further block has twice as many.
        weights: safetensors file with the features' weights, named and shaped as torchvision names
            those of VGG-16 (``features.0.weight``); without, they are random and always the same.
    """

    def __init__(self, paintings_BCHW: Tensor, width: int, weights: str = "") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.judged: list[int] = []
        before = 3
        for block, count in enumerate(CONVOLUTIONS):
            layers += [nn.AvgPool2d(2)] if block else []
            for _ in range(count):
                layers += [nn.Conv2d(before, width * 2**block, 3, padding=1), nn.ReLU()]
                before = width * 2**block
            self.judged.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(LOSS_SEED)
            he_init(self.features)
        if weights:
            read_weights(self, Path(weights), "task.weights")
        self.requires_grad_(False)
        for level, features_BCHW in enumerate(self(paintings_BCHW)):
            self.register_buffer(f"gram{level}", gram(features_BCHW).mean(0))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the features of the last layer of each block."""
        features = []
        x_BCHW = (x_BCHW - 0.45) / 0.225
        for number, layer in enumerate(self.features):
            x_BCHW = layer(x_BCHW)
            if number in self.judged:
                features.append(x_BCHW)
        return features

    def style(self, features: Sequence[Tensor]) -> Tensor:
        """Return how far the Gram matrices are from the paintings' (B,), relative to those."""
        losses = []
        for level, features_BCHW in enumerate(features):
            aim_CC = self.get_buffer(f"gram{level}")
            apart_BCC = gram(features_BCHW) - aim_CC
            losses.append(apart_BCC.square().sum((1, 2)) / aim_CC.square().sum())
        return torch.stack(losses).mean(0)

    def content(self, features: Sequence[Tensor], aim: Sequence[Tensor]) -> Tensor:
        """Return how far features are from those of the content (B,), relative to their spread."""
        apart_BCHW = features[CONTENT] - aim[CONTENT]
        return apart_BCHW.square().mean((1, 2, 3)) / aim[CONTENT].var((1, 2, 3))


def optimise(
    judge: Judge, x_BCHW: Tensor, style_weight: float, steps: int = 100, lr: float = 0.02
) -> Tensor:
    """Return pictures repainted pixel by pixel (Gatys): no network, and slow; x in [0, 1]."""
    with torch.no_grad():
        aim = judge(x_BCHW)
    y_BCHW = x_BCHW.clone().requires_grad_()
    search = torch.optim.Adam([y_BCHW], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            features = judge(y_BCHW)
            loss = judge.content(features, aim) + style_weight * judge.style(features)
            search.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            search.step()
            y_BCHW.data.clamp_(0, 1)
    return y_BCHW.detach()
