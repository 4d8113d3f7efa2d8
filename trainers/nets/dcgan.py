"""The two networks of a DCGAN: strided convolutions only, batch norm, no pooling.

Source: Radford et al., Unsupervised representation learning with deep convolutional generative
adversarial networks (2016).

Shape legend: B batch, Z noise, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FIRST = 4
"""Height and width of what the generator begins with, and of what the discriminator ends with."""
SIZES = (8, 16, 32, 64, 128)


class Generator(nn.Module):
    """Make pictures in [-1, 1] from noise: a projection to 4x4, then it doubles every layer."""

    def __init__(self, size: int, channels: int, width: int, noise: int) -> None:
        """Build it for square pictures; ``width`` channels are in the last hidden layer."""
        super().__init__()
        doublings = _doublings(size)
        now = width << (doublings - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(noise, now, FIRST, bias=False),
            nn.BatchNorm2d(now),
            nn.ReLU(inplace=True),
        ]
        for _ in range(doublings - 1):
            layers += [
                nn.ConvTranspose2d(now, now // 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(now // 2),
                nn.ReLU(inplace=True),
            ]
            now //= 2
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(now, channels, 4, 2, 1), nn.Tanh())
        start(self)

    def forward(self, noise_BZ: Tensor) -> Tensor:
        """Return pictures_BCHW."""
        made_BCHW: Tensor = self.layers(noise_BZ[:, :, None, None])
        return made_BCHW


class Discriminator(nn.Module):
    """Judge pictures in [-1, 1]: logits, above 0 for real; each layer halves the picture."""

    def __init__(self, size: int, channels: int, width: int) -> None:
        """Build it for square pictures; ``width`` channels are in the first hidden layer."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        now = width
        for _ in range(_doublings(size) - 1):
            layers += [
                nn.Conv2d(now, 2 * now, 4, 2, 1, bias=False),
                nn.BatchNorm2d(2 * now),
                nn.LeakyReLU(0.2),
            ]
            now *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(now, 1, FIRST))
        start(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_B."""
        logits_B: Tensor = self.layers(x_BCHW).flatten()
        return logits_B


def start(net: nn.Module) -> None:
    """Draw the weights from N(0, 0.02), those of batch norms from N(1, 0.02); biases are zero."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            nn.init.normal_(layer.weight, mean, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def targets(logits_B: Tensor, real: bool) -> Tensor:
    """Return what a discriminator is to say: ones for real pictures, zeros for made ones."""
    return torch.ones_like(logits_B) if real else torch.zeros_like(logits_B)


def judged(logits_B: Tensor, real: bool) -> Tensor:
    """Return the cross-entropy of a discriminator's logits and what it is to say."""
    return functional.binary_cross_entropy_with_logits(logits_B, targets(logits_B, real))


def between(ends_2Z: Tensor, steps: int) -> Tensor:
    """Return noise_BZ that goes from one end to the other in equal steps, both included."""
    share_B1 = torch.linspace(0, 1, steps)[:, None]
    return torch.lerp(ends_2Z[:1], ends_2Z[1:], share_B1)


def _doublings(size: int) -> int:
    return (size // FIRST).bit_length() - 1
