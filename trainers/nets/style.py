"""Image style transfer: a network that repaints, and frozen features that judge it.

Shape legend: B batch, C channels, H height, W width, L layers whose features count.
Sources: Gatys et al., Image Style Transfer Using Convolutional Neural Networks (2016);
Johnson et al., Perceptual Losses for Real-Time Style Transfer and Super-Resolution (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.data.weights import read_weights
from trainers.scores.ssim import luma

CONVOLUTIONS = (2, 2, 3, 3)
"""In each block of the loss network, as in VGG-16 up to conv4_3."""
CONTENT = 1
"""The block whose features say what is to be seen: relu2_2."""
SIZES = (3, 5, 7, 11)
"""Pixels each way of the patches of the paintings."""
LEAST_SPREAD = 0.03
"""Of a colour that paintings have none of, so that others are not infinitely far."""
SEED = 2016
NOISE = 64
"""Pixels each way of the noise, which repeats beyond."""


@dataclass(frozen=True)
class Features:
    """What a judging network makes of pictures: features for the style by level, and a content."""

    style: Sequence[Tensor]
    content: Tensor


def gram(features_BCHW: Tensor) -> Tensor:
    """Return the Gram matrices (B, C, C): products of channels, over C * H * W."""
    flat_BCN = features_BCHW.flatten(2)
    return flat_BCN @ flat_BCN.mT / flat_BCN[0].numel()


def total_variation(x_BCHW: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels."""
    down, right = x_BCHW.diff(dim=2), x_BCHW.diff(dim=3)
    return down.square().mean() + right.square().mean()


def recoloured(x_BCHW: Tensor, paintings_BCHW: Tensor) -> Tensor:
    """Return pictures with the mean and the covariance of the paintings' colours, and no more.

    Source: Reinhard et al., Color transfer between images (2001), with all of the covariance.
    """
    mean_C1, root_CC = palette(paintings_BCHW)
    answers = []
    for x_CHW in x_BCHW:
        own_C1, own_CC = palette(x_CHW[None])
        even_CN = torch.linalg.solve_triangular(own_CC, x_CHW.flatten(1) - own_C1, upper=False)
        answers.append((root_CC @ even_CN + mean_C1).view_as(x_CHW))
    return torch.stack(answers).clamp(0, 1)


def palette(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the colours (C, 1) and the Cholesky root of their covariance (C, C)."""
    colours_CN = x_BCHW.transpose(0, 1).flatten(1)
    spare_CC = LEAST_SPREAD**2 * torch.eye(len(colours_CN), device=x_BCHW.device)
    return colours_CN.mean(1, keepdim=True), torch.linalg.cholesky(colours_CN.cov() + spare_CC)


class Transform(nn.Module):
    """Repaint pictures of any size: y_BCHW in [0, 1] of x_BCHW in [0, 1].

    Beside each picture it sees the same fixed noise, which says where strokes are on even ground.
    The last layer sees the picture once more, for what is fine. Source of the noise: Ulyanov et
    al., Texture Networks (2016).

    Args:
        width: channels of the first convolution; the paper has 32.
        residual: blocks in the middle; the paper has 5.
    """

    noise_11HW: Tensor

    def __init__(self, width: int = 32, residual: int = 5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *_layer(3 + 1, width, 9),
            *_layer(width, 2 * width, 3, stride=2),
            *_layer(2 * width, 4 * width, 3, stride=2),
            *(Residual(4 * width) for _ in range(residual)),
            nn.Upsample(scale_factor=2),
            *_layer(4 * width, 2 * width, 3),
            nn.Upsample(scale_factor=2),
            *_layer(2 * width, width, 3),
        )
        self.last = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(width + 3, 3, 9), nn.Tanh())
        luck = torch.Generator().manual_seed(SEED)
        self.register_buffer("noise_11HW", torch.randn(1, 1, NOISE, NOISE, generator=luck))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BCHW; sides that 4 does not divide are filled up, and cut again."""
        count, _, height, width = x_BCHW.shape
        whole_BCHW = functional.pad(x_BCHW, (0, -width % 4, 0, -height % 4), mode="replicate")
        high, wide = whole_BCHW.shape[2:]
        tiles_11HW = self.noise_11HW.repeat(1, 1, -(-high // NOISE), -(-wide // NOISE))
        noise_B1HW = tiles_11HW[:, :, :high, :wide].expand(count, -1, -1, -1)
        even_BCHW = whole_BCHW * 2 - 1
        features_BCHW = self.net(torch.cat([even_BCHW, noise_B1HW], 1))
        y_BCHW: Tensor = self.last(torch.cat([features_BCHW, even_BCHW], 1))
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


class Vgg(nn.Module):
    """Features of VGG-16 up to conv4_3: of four ReLU for the style, of relu2_2 for the content.

    Args:
        weights: safetensors file, named and shaped as torchvision names those of VGG-16
            (``features.0.weight``).
        width: channels of the first block; VGG has 64. Each further block has twice as many.
    """

    def __init__(self, weights: Path, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.judged: list[int] = []
        before = 3
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)  # what the file lacks is the same for all workers
            for block, count in enumerate(CONVOLUTIONS):
                layers += [nn.AvgPool2d(2)] if block else []
                for _ in range(count):
                    layers += [nn.Conv2d(before, width * 2**block, 3, padding=1), nn.ReLU()]
                    before = width * 2**block
                self.judged.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        read_weights(self, weights, "task.weights")

    def forward(self, x_BCHW: Tensor) -> Features:
        """Return what tells the style, and what tells the content."""
        features = []
        x_BCHW = (x_BCHW - 0.45) / 0.225
        for number, layer in enumerate(self.features):
            x_BCHW = layer(x_BCHW)
            if number in self.judged:
                features.append(x_BCHW)
        return Features(features, features[CONTENT])


class Patches(nn.Module):
    """Features that need no training: how pictures answer to pieces of the paintings.

    One layer of filters of several sizes tells textures apart; bits of the pictures themselves are
    good filters; brightness tells what is to be seen, whatever the colours. Sources: Ustyuzhaninov
    et al., Texture Synthesis Using Shallow Convolutional Networks with Random Filters (2016);
    Coates and Ng, An Analysis of Single-Layer Networks in Unsupervised Feature Learning (2011).

    Args:
        paintings_BCHW: where the filters are cut from, in [0, 1].
        count: filters of each size.
    """

    mean_C1: Tensor
    root_CC: Tensor

    def __init__(self, paintings_BCHW: Tensor, count: int) -> None:
        super().__init__()
        mean_C1, root_CC = palette(paintings_BCHW)
        self.register_buffer("mean_C1", mean_C1)
        self.register_buffer("root_CC", root_CC)
        self.filters = nn.ModuleList()
        luck = torch.Generator().manual_seed(SEED)
        for size in SIZES:
            layer = nn.Conv2d(3, count, size, bias=False)
            pieces_BNP = functional.unfold(paintings_BCHW, size).mT
            pieces_NCHW = pieces_BNP.flatten(0, 1).unflatten(1, (3, size, size))
            picked = torch.randint(len(pieces_NCHW), (count,), generator=luck)
            even_NCHW = pieces_NCHW[picked] - pieces_NCHW[picked].mean((2, 3), keepdim=True)
            answers_BCHW = functional.conv2d(paintings_BCHW, even_NCHW)
            spread_C = answers_BCHW.std((0, 2, 3)) + 1e-6
            layer.weight.data = even_NCHW / spread_C[:, None, None, None]
            self.filters.append(layer)

    def forward(self, x_BCHW: Tensor) -> Features:
        """Return what tells the style, and what tells the content."""
        apart_BCN = x_BCHW.flatten(2) - self.mean_C1
        even_BCN = torch.linalg.solve_triangular(self.root_CC, apart_BCN, upper=False)
        # With a channel of ones, a Gram matrix has the means of the colours as well.
        colours_BCHW = functional.pad(even_BCN, (0, 0, 0, 1), value=1.0).unflatten(
            2, x_BCHW.shape[2:]
        )
        textures = [functional.relu(layer(x_BCHW)) for layer in self.filters]
        light_B1HW = functional.avg_pool2d(luma(x_BCHW), 3, 1, 1, count_include_pad=False)
        spread_B111, mean_B111 = torch.std_mean(light_B1HW, (1, 2, 3), keepdim=True)
        seen_B1HW = (light_B1HW - mean_B111) / (spread_B111 + 0.02)
        return Features([colours_BCHW, *textures], seen_B1HW)


class Judge(nn.Module):
    """A frozen network, and the style it compares to: the mean of all paintings' Gram matrices.

    Args:
        paintings_BCHW: what to learn the style of, in [0, 1].
        width: channels of VGG's first block, or how many patches of each size.
        weights: safetensors file with the weights of a VGG-16; without, patches of the paintings.
    """

    def __init__(self, paintings_BCHW: Tensor, width: int, weights: str = "") -> None:
        super().__init__()
        self.look = Vgg(Path(weights), width) if weights else Patches(paintings_BCHW, width)
        self.requires_grad_(False)
        for level, features_BCHW in enumerate(self(paintings_BCHW).style):
            self.register_buffer(f"gram{level}", gram(features_BCHW).mean(0))

    def forward(self, x_BCHW: Tensor) -> Features:
        """Return what tells the style, and what tells the content."""
        features: Features = self.look(x_BCHW)
        return features

    def style(self, features: Features) -> Tensor:
        """Return how far the Gram matrices are from the paintings' (B,), relative to those."""
        losses = []
        for level, features_BCHW in enumerate(features.style):
            aim_CC = self.get_buffer(f"gram{level}")
            apart_BCC = gram(features_BCHW) - aim_CC
            losses.append(apart_BCC.square().sum((1, 2)) / aim_CC.square().sum())
        return torch.stack(losses).mean(0)

    def content(self, features: Features, aim: Features) -> Tensor:
        """Return how far features are from those of the content (B,), relative to their spread.

        It is the spread of all pictures together, or those that are nearly even would outweigh all.
        """
        apart_BCHW = features.content - aim.content
        return apart_BCHW.square().mean((1, 2, 3)) / (aim.content.var() + 1e-6)


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
