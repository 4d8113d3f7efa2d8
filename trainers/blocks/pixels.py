"""What tasks of class maps share: normalised pictures, the loss, whole class maps.

Shape legend: B batch, C channels, H height, W width, K classes, N pixels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.errors import UsageError
from trainers.blocks.classify import logits
from trainers.blocks.linear import fit_linear
from trainers.data.scenes import Scene, Scenes, some
from trainers.scores.segmentation import IGNORED

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures, as pretrained encoders want them."""


def stacked(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return (x_B3HW normalised, labels_BHW) of pictures of one size."""
    images_BHW3 = np.stack([image for image, _ in scenes])
    labels_BHW = np.stack([labels for _, labels in scenes])
    return normalised(torch.from_numpy(images_BHW3)), torch.from_numpy(labels_BHW).long()


def normalised(images_BHW3: Tensor) -> Tensor:
    """Return uint8 pictures as x_B3HW, channels last, with ImageNet's mean 0 and deviation 1."""
    mean, deviation = (torch.tensor(v).repeat(images_BHW3.shape[2]) for v in (MEAN, DEVIATION))
    rows_BHV = images_BHW3.flatten(2).float()  # a row of long ones takes a fifth of many of three
    rows_BHV.div_(255).sub_(mean).div_(deviation)
    return rows_BHV.view(images_BHW3.shape).movedim(3, 1)


def shown(x_B3HW: Tensor) -> Tensor:
    """Return the uint8 pictures images_BHW3 that were normalised."""
    deviation, mean = (x_B3HW.new_tensor(values) for values in (DEVIATION, MEAN))
    images_BHW3 = (x_B3HW.movedim(1, -1) * deviation + mean) * 255
    return images_BHW3.round().clamp(0, 255).to(torch.uint8)


def pixel_loss(logits_BKHW: Tensor, labels_BHW: Tensor, weight_K: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy over pixels that are not ignored; 0 where all are.

    With weights of classes the mean is over the pixels' weights.
    """
    if weight_K is None:
        weight_K = torch.ones(logits_BKHW.shape[1], device=logits_BKHW.device)
    summed = functional.cross_entropy(
        logits_BKHW, labels_BHW, weight_K, ignore_index=IGNORED, reduction="sum"
    )
    judged = labels_BHW != IGNORED
    return summed / weight_K[labels_BHW[judged]].sum().clamp(min=1e-6)


def class_map(net: nn.Module, x_BCHW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the class of every pixel as uint8 labels_BHW, without gradients, on the CPU.

    With a ``size`` the logits are first resized to that height and width.
    Raises UsageError for anything but RGB pictures.
    """
    if x_BCHW.dim() != 4 or x_BCHW.shape[1] != 3:
        raise UsageError(
            f"pictures of shape {tuple(x_BCHW.shape)} cannot be segmented - allowed: "
            "(count, 3, height, width) - do: convert them to RGB"
        )
    answer_BKHW = logits(net, x_BCHW)
    if size is not None and size != tuple(x_BCHW.shape[2:]):
        answer_BKHW = functional.interpolate(answer_BKHW, size, mode="bilinear")
    return answer_BKHW.argmax(1).to(torch.uint8).cpu()


@lru_cache(maxsize=4)
def median_frequency(scenes: Scenes, most: int = 500) -> Tensor:
    """Return weights_K: the median frequency of the classes over each one's own.

    A class's frequency is its share of the pixels of pictures that show it; one that is never
    shown weighs 0. Looks at up to ``most`` pictures. Source: Eigen and Fergus (2015), as SegNet.
    """
    counts_BK = torch.stack(
        [
            torch.from_numpy(labels.ravel()).long().bincount(minlength=256)[: len(scenes.kinds)]
            for _, labels in some(scenes, most)
        ]
    ).double()
    shown_BK = counts_BK > 0
    frequency_K = counts_BK.sum(0) / (shown_BK * counts_BK.sum(1, keepdim=True)).sum(0)
    weights_K = frequency_K.nanmedian() / frequency_K
    return weights_K.nan_to_num(0.0).float()


class ColourAndPlace(nn.Module):
    """The linear classifier of single pixels: logits_BKHW from RGB and the place alone."""

    def __init__(self, scenes: Scenes, pictures: int = 40, pixels: int = 250) -> None:
        """Fit to some pixels of some pictures, the same ones each time."""
        super().__init__()
        rows, labels, draw = [], [], torch.Generator().manual_seed(0)
        for scene in some(scenes, pictures):
            x_1CHW, labels_1HW = stacked([scene])
            place_N = torch.randint(labels_1HW.numel(), (pixels,), generator=draw)
            rows.append(_features(x_1CHW)[0].flatten(1)[:, place_N].T)
            labels.append(labels_1HW.flatten()[place_N])
        x_NF, truth_N = torch.cat(rows), torch.cat(labels)
        known = truth_N != IGNORED
        self.linear = fit_linear(x_NF[known], truth_N[known], classes=len(scenes.kinds))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BKHW."""
        answer_BHWK: Tensor = self.linear(_features(x_BCHW).movedim(1, -1))
        return answer_BHWK.movedim(-1, 1)


class Commonest(nn.Module):
    """Name every pixel after the class that is commonest in some pictures."""

    def __init__(self, scenes: Scenes) -> None:
        """Count the classes of up to 40 pictures."""
        super().__init__()
        labels_N = np.concatenate([labels.ravel() for _, labels in some(scenes, 40)])
        counts_K = torch.from_numpy(labels_N).long().bincount(minlength=256)[: len(scenes.kinds)]
        self.counts_K = nn.Parameter(counts_K.float(), requires_grad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BKHW."""
        batch, _, height, width = x_BCHW.shape
        return self.counts_K[None, :, None, None].expand(batch, -1, height, width)


def _features(x_BCHW: Tensor) -> Tensor:
    """Return the colour and the place in the picture as channels."""
    batch, _, height, width = x_BCHW.shape
    down_HW = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    right_HW = torch.linspace(-1, 1, width).expand(height, width)
    place_BCHW = torch.stack([down_HW, right_HW]).expand(batch, -1, -1, -1)
    return torch.cat([x_BCHW, place_BCHW.to(x_BCHW.device)], 1)
