"""Regions of interest read from feature maps, as torch operators.

Only the inputs are kept for backward; roi_pool finds its largest pixels again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.vision import native, reference
from kernels.vision.operators import pair, register, require
from kernels.vision.reference import Bins

Rois = Tensor | Sequence[Tensor]


def roi_align(
    x_BCHW: Tensor,
    rois: Rois,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Return [R, C, *output_size]: averages of bilinear samples of every bin (arXiv:1703.06870).

    Args:
        x_BCHW: feature maps.
        rois: [R, 5], (image, x0, y0, x1, y1) in pixels of the image, or a list of [r, 4] boxes,
            one tensor for each image. They get no gradient.
        output_size: bins, a number or (y, x).
        spatial_scale: pixels of the map for one of the image, such as 1 / 16.
        sampling_ratio: samples along each axis of a bin; 0 takes one for every pixel of a bin.
        aligned: pixel centres are at half coordinates (half_pixel of ONNX).

    Raises:
        ValueError: shapes, sizes or image numbers do not fit, in one line.
    """
    bins = Bins(pair(output_size, "output_size", 1), spatial_scale, max(0, sampling_ratio), aligned)
    together = _rois(x_BCHW, rois)
    rest = (list(bins.size), bins.scale, bins.samples, bins.aligned)
    return _ALIGN(x_BCHW, together, *rest)  # type: ignore[no-any-return]


def roi_pool(
    x_BCHW: Tensor,
    rois: Rois,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Return [R, C, *output_size]: the largest value of every whole-pixel bin (arXiv:1504.08083).

    Args:
        x_BCHW: feature maps.
        rois: as in ``roi_align``.
        output_size: bins, a number or (y, x).
        spatial_scale: pixels of the map for one of the image.

    Raises:
        ValueError: shapes, sizes or image numbers do not fit, in one line.
    """
    size = list(pair(output_size, "output_size", 1))
    return _POOL(x_BCHW, _rois(x_BCHW, rois), size, spatial_scale)  # type: ignore[no-any-return]


def _rois(x_BCHW: Tensor, rois: Rois) -> Tensor:
    """Return [R, 5] of either form, in single or double precision."""
    require(
        x_BCHW.dim() == 4 and x_BCHW.is_floating_point() and x_BCHW.shape[2] * x_BCHW.shape[3] > 0,
        f"x {list(x_BCHW.shape)} of {x_BCHW.dtype} - allowed: floating point [B, C, H, W] with at "
        "least one pixel - do: reshape or convert",
    )
    if not isinstance(rois, Tensor):
        require(
            len(rois) == x_BCHW.shape[0] and all(r.dim() == 2 and r.shape[1] == 4 for r in rois),
            f"rois {[list(r.shape) for r in rois]} - allowed: a list of {x_BCHW.shape[0]} tensors "
            "[r, 4], one for each image - do: give empty tensors to images without boxes",
        )
        numbers = [torch.full_like(r[:, :1], b) for b, r in enumerate(rois)]
        rois = torch.cat([torch.cat([n, r], 1) for n, r in zip(numbers, rois, strict=True)])
    require(
        rois.dim() == 2 and rois.shape[1] == 5 and rois.is_floating_point(),
        f"rois {list(rois.shape)} of {rois.dtype} - allowed: floating point [R, 5], (image, x0, "
        "y0, x1, y1), or a list of boxes - do: reshape or convert",
    )
    return rois if rois.dtype == torch.float64 else rois.float()


def _check_images(x: Tensor, rois: Tensor) -> None:
    """Refuse numbers of images that are not there; on a GPU it would wait, so they read 0."""
    if rois.device.type != "cpu" or not len(rois):
        return
    number = rois[:, 0]
    wrong = (number != number.floor()) | ~((number >= 0) & (number < len(x)))
    require(
        not wrong.any(),
        f"roi of image {number[wrong][:1].tolist()} - allowed: whole numbers from 0 to "
        f"{len(x) - 1} - do: put the image's number into the first column",
    )


def _runner(name: str, bins: Callable[..., Bins]) -> Callable[..., Tensor]:
    def run(x: Tensor, rois: Tensor, *rest: Any) -> Tensor:
        _check_images(x, rois)
        place: Any = native if native.fits(x, rois) else reference
        return getattr(place, name)(x, rois, bins(*rest))  # type: ignore[no-any-return]

    return run


def _backward_runner(name: str, bins: Callable[..., Bins]) -> Callable[..., Tensor]:
    def run(grad: Tensor, x: Tensor, rois: Tensor, *rest: Any) -> Tensor:
        place: Any = native if native.fits(grad, x, rois) else reference
        found = getattr(place, f"{name}_backward")(grad, x, rois, bins(*rest))
        return found  # type: ignore[no-any-return]

    return run


def _fake(x: Tensor, rois: Tensor, size: list[int], *rest: Any) -> Tensor:
    return x.new_empty((rois.shape[0], x.shape[1], *size))


def _fake_backward(grad: Tensor, x: Tensor, rois: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rois, *ctx.rest = inputs
    ctx.save_for_backward(x, rois)


def _operator(name: str, arguments: str, bins: Callable[..., Bins]) -> Any:
    """Register a reading of regions with its derivative by x."""
    backward = register(
        f"{name}_backward(Tensor grad, Tensor x, Tensor rois, {arguments}) -> Tensor",
        _backward_runner(name, bins), _fake_backward,
    )  # fmt: skip

    def derive(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (backward(grad, *ctx.saved_tensors, *ctx.rest), *[None] * (1 + len(ctx.rest)))

    schema = f"{name}(Tensor x, Tensor rois, {arguments}) -> Tensor"
    return register(schema, _runner(name, bins), _fake, _keep, derive)


def _align_bins(size: list[int], scale: float, samples: int, aligned: bool) -> Bins:
    return Bins((size[0], size[1]), scale, samples, aligned)


def _pool_bins(size: list[int], scale: float) -> Bins:
    return Bins((size[0], size[1]), scale)


_ALIGN = _operator("roi_align", "int[] size, float scale, int samples, bool aligned", _align_bins)
_POOL = _operator("roi_pool", "int[] size, float scale", _pool_bins)
