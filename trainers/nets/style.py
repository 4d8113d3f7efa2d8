"""Image style transfer: a network that repaints, and two ways to judge what it paints.

Shape legend: B batch, C channels, H height, W width, N places of a picture, F filters.
Sources: Gatys et al., Image Style Transfer Using Convolutional Neural Networks (2016);
Johnson et al., Perceptual Losses for Real-Time Style Transfer and Super-Resolution (2016).
"""

from __future__ import annotations

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
VIEWS = ((1, 1), (7, 1), (7, 2), (7, 4))
"""Pixels each way of the patches that are compared, and how much smaller the picture is made."""
COMPARED = 8
"""Paintings that one minibatch is compared with, drawn from all."""
LEAST_SPREAD = 0.03
"""Of a colour that paintings have none of, so that others are not infinitely far."""
SEED = 2016
NOISE = 512
"""Pixels each way of the noise, which repeats beyond: so wide that one does not see it."""


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
        noise_11HW = torch.randn(1, 1, NOISE, NOISE, generator=luck)
        self.register_buffer("noise_11HW", noise_11HW, persistent=False)

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


class Patches(nn.Module):
    """Judge pictures by all their patches: sliced Wasserstein distances, with nothing trained.

    Random filters project the patches of a picture, and those of the paintings; that the sorted
    answers are the same, for any filter, means that the patches are. So what is rare in the
    paintings stays rare in a picture. Brightness tells what is to be seen, whatever the colours.
    In training every call draws filters from torch's random numbers; a judge in evaluation has
    always the same. Sources: Heitz et al., A Sliced Wasserstein Loss for Neural Texture Synthesis
    (2021); Elnekave and Weiss, Generating Natural Images with Direct Patch Distributions Matching
    (2022).

    Args:
        paintings_BCHW: what to learn the style of, in [0, 1].
        count: filters of each size.
    """

    paintings_BCHW: Tensor

    def __init__(self, paintings_BCHW: Tensor, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("paintings_BCHW", paintings_BCHW, persistent=False)

    def forward(self, y_BCHW: Tensor, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far y is from the content of x (B,), and from the paintings' style (B,)."""
        luck = None if self.training else torch.Generator().manual_seed(SEED)
        picked = torch.randperm(len(self.paintings_BCHW), generator=luck)[:COMPARED]
        paintings_BCHW = self.paintings_BCHW[picked.to(y_BCHW.device)]
        losses = []
        for size, smaller in VIEWS:
            filters_FCHW = torch.randn(self.count, 3, size, size, generator=luck).to(y_BCHW)
            if size > 1:  # every other filter tells strokes from even ground, of any colour
                filters_FCHW[::2] -= filters_FCHW[::2].mean((2, 3), keepdim=True)
            losses.append(
                sliced_distance(
                    functional.avg_pool2d(y_BCHW, smaller),
                    functional.avg_pool2d(paintings_BCHW, smaller),
                    filters_FCHW,
                )
            )
        apart_B1HW = _seen(y_BCHW) - _seen(x_BCHW)
        return apart_B1HW.square().mean((1, 2, 3)), torch.stack(losses).mean(0)


def sliced_distance(y_BCHW: Tensor, aim_BCHW: Tensor, filters_FCHW: Tensor) -> Tensor:
    """Return how far the answers of filters to each picture are from those to all of the aim (B,).

    Answers are compared by rank, whatever their places; relative to the variance of the aim's.
    """
    answers_BFN = functional.conv2d(y_BCHW, filters_FCHW).flatten(2).sort(2).values
    with torch.no_grad():
        aim_FN = functional.conv2d(aim_BCHW, filters_FCHW).transpose(0, 1).flatten(1).sort(1).values
        ranks_N = torch.arange(answers_BFN.shape[2], device=y_BCHW.device) + 0.5
        even_FN = aim_FN[:, (ranks_N * (aim_FN.shape[1] / len(ranks_N))).long()]
        variance_F = aim_FN.var(1) + 1e-6
    return ((answers_BFN - even_FN).square().mean(2) / variance_F).mean(1)


def _seen(x_BCHW: Tensor) -> Tensor:
    light_B1HW = functional.avg_pool2d(luma(x_BCHW), 3, 1, 1, count_include_pad=False)
    spread_B111, mean_B111 = torch.std_mean(light_B1HW, (1, 2, 3), keepdim=True)
    return (light_B1HW - mean_B111) / (spread_B111 + 0.02)


class Vgg(nn.Module):
    """Judge pictures by VGG-16 up to conv4_3, frozen: the style by Gram matrices of four ReLU.

    The style is the mean of all paintings' matrices; relu2_2 tells the content.

    Args:
        paintings_BCHW: what to learn the style of, in [0, 1].
        width: channels of the first block; VGG has 64. Each further block has twice as many.
        weights: safetensors file, named and shaped as torchvision names those of VGG-16
            (``features.0.weight``).
    """

    def __init__(self, paintings_BCHW: Tensor, width: int, weights: Path) -> None:
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
        self.requires_grad_(False)
        for level, features_BCHW in enumerate(self.look(paintings_BCHW)):
            self.register_buffer(f"gram{level}", gram(features_BCHW).mean(0), persistent=False)

    def forward(self, y_BCHW: Tensor, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far y is from the content of x (B,), and from the paintings' style (B,)."""
        features = self.look(y_BCHW)
        with torch.no_grad():
            aim_BCHW = self.look(x_BCHW)[CONTENT]
        losses = []
        for level, features_BCHW in enumerate(features):
            aim_CC = self.get_buffer(f"gram{level}")
            apart_BCC = gram(features_BCHW) - aim_CC
            losses.append(apart_BCC.square().sum((1, 2)) / aim_CC.square().sum())
        apart_BCHW = features[CONTENT] - aim_BCHW
        content_B = apart_BCHW.square().mean((1, 2, 3)) / (aim_BCHW.var() + 1e-6)
        return content_B, torch.stack(losses).mean(0)

    def look(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the judged features of pictures in [0, 1]."""
        features = []
        x_BCHW = (x_BCHW - 0.45) / 0.225
        for number, layer in enumerate(self.features):
            x_BCHW = layer(x_BCHW)
            if number in self.judged:
                features.append(x_BCHW)
        return features


def optimise(
    judge: nn.Module, x_BCHW: Tensor, y_BCHW: Tensor, style_weight: float, steps: int = 100
) -> Tensor:
    """Return pictures x repainted pixel by pixel (Gatys) from y on: no network, and slow."""
    y_BCHW = y_BCHW.clone().requires_grad_()
    search = torch.optim.Adam([y_BCHW], lr=0.03)
    with torch.enable_grad():
        for _ in range(steps):
            content_B, style_B = judge(y_BCHW, x_BCHW)
            search.zero_grad()
            (content_B + style_weight * style_B).sum().backward()
            search.step()
            y_BCHW.data.clamp_(0, 1)
    return y_BCHW.detach()
