"""The vision kernels in C, called with tensors of float32 in the CPU's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_double, c_float, c_int, c_int64, c_size_t, c_ssize_t, c_void_p

import torch
from torch import Tensor

from kernels import cpu
from kernels.vision.reference import Bins, Window

GRAIN = 1 << 18
"""Pixels read per thread below which a further thread costs more than it saves."""


def fits(*tensors: Tensor) -> bool:
    """Tell whether C can take these tensors: float32 on the CPU, images below 2^31 pixels."""
    return all(
        t.dtype == torch.float32 and t.device.type == "cpu" and t.shape[-2:].numel() < 1 << 31
        for t in tensors
    )


def in_parts(run: Callable[[int, int], int], parts: int, cost: int) -> None:
    """Run parts of a piece of work, on as many threads as torch may use and the cost is worth.

    Args:
        run: does the parts from its first argument up to its second; 0 or a negative errno.
        parts: how many there are; none writes what another one writes.
        cost: of all together, in pixels read.
    """
    threads = max(1, min(torch.get_num_threads(), parts, cost // GRAIN))
    edges = [parts * i // threads for i in range(threads + 1)]
    if threads == 1:
        cpu.check(run(0, parts))
        return
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(run, edges[:-1], edges[1:]):
            cpu.check(result)


class Lattice(ctypes.Structure):
    """Sizes of a deformable sampling, as deform.c has them."""

    _fields_ = [
        (name, c_int64)
        for name in (
            *("channels", "height", "width", "rows", "columns", "kernel_y", "kernel_x"),
            *("stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x", "integer"),
        )
    ]


_sample = cpu.function("dlp_deform_sample", c_int, *[c_void_p] * 4, *[c_size_t] * 2)
_spread = cpu.function("dlp_deform_spread", c_int, *[c_void_p] * 6, *[c_size_t] * 2)
_parts = cpu.function("dlp_deform_parts", c_size_t, c_void_p)


def _lattice(x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool) -> Lattice:
    steps = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    return Lattice(*x_BCHW.shape[1:], *offset.shape[2:], *steps, integer)


def deform_sample(x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool) -> Tensor:
    """Do what ``reference.deform_sample`` says."""
    x_BCHW, offset = x_BCHW.contiguous(), offset.contiguous()
    lattice = _lattice(x_BCHW, offset, window, integer)
    cols = x_BCHW.new_empty((*x_BCHW.shape[:2], window.places, *offset.shape[2:]))
    if cols.numel():
        where = (ctypes.addressof(lattice), x_BCHW.data_ptr(), offset.data_ptr(), cols.data_ptr())
        parts = _parts(where[0]) * len(x_BCHW)
        in_parts(lambda begin, end: int(_sample(*where, begin, end)), parts, cols.numel())
    return cols


def deform_sample_backward(
    grad: Tensor, x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool
) -> tuple[Tensor, Tensor]:
    """Do what ``reference.deform_sample_backward`` says."""
    grad, x_BCHW, offset = grad.contiguous(), x_BCHW.contiguous(), offset.contiguous()
    lattice = _lattice(x_BCHW, offset, window, integer)
    x_grad, offset_grad = torch.zeros_like(x_BCHW), torch.zeros_like(offset)
    if grad.numel():
        to = None if integer else offset_grad.data_ptr()
        where = (
            *(ctypes.addressof(lattice), x_BCHW.data_ptr(), offset.data_ptr(), grad.data_ptr()),
            *(x_grad.data_ptr(), to),
        )
        run = lambda begin, end: int(_spread(*where, begin, end))  # noqa: E731
        in_parts(run, len(x_BCHW), 4 * grad.numel())
    return x_grad, offset_grad


class Regions(ctypes.Structure):
    """Sizes of a reading of regions, as roi.c has them."""

    _fields_ = [
        *(
            (name, c_int64)
            for name in (
                *("images", "channels", "height", "width", "rois", "bins_y", "bins_x", "samples"),
                "aligned",
            )
        ),
        ("scale", c_double),
    ]


_roi = cpu.function("dlp_roi", c_int, *[c_void_p] * 5, c_int, *[c_size_t] * 2)
_roi_parts = cpu.function("dlp_roi_parts", c_size_t, c_void_p)


def roi_align(x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Do what ``reference.roi_align`` says."""
    y = x_BCHW.new_empty((len(rois), x_BCHW.shape[1], *bins.size))
    return _regions(x_BCHW, rois, bins, y, None, False)


def roi_align_backward(grad: Tensor, x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Do what ``reference.roi_align_backward`` says."""
    x_grad = torch.zeros_like(x_BCHW, memory_format=torch.contiguous_format)
    return _regions(x_BCHW, rois, bins, grad.contiguous(), x_grad, False)


def roi_pool(x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Do what ``reference.roi_pool`` says."""
    y = x_BCHW.new_empty((len(rois), x_BCHW.shape[1], *bins.size))
    return _regions(x_BCHW, rois, bins, y, None, True)


def roi_pool_backward(grad: Tensor, x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Do what ``reference.roi_pool_backward`` says."""
    x_grad = torch.zeros_like(x_BCHW, memory_format=torch.contiguous_format)
    return _regions(x_BCHW, rois, bins, grad.contiguous(), x_grad, True)


def _regions(
    x_BCHW: Tensor, rois: Tensor, bins: Bins, y: Tensor, x_grad: Tensor | None, most: bool
) -> Tensor:
    """Fill y, or x's gradient from that of y."""
    x_BCHW, rois = x_BCHW.contiguous(), rois.contiguous()
    if y.numel() and x_BCHW.numel():
        sizes = (*x_BCHW.shape, len(rois), *bins.size, bins.samples, bins.aligned)
        regions = Regions(*sizes, bins.scale)
        where = (
            *(ctypes.addressof(regions), x_BCHW.data_ptr(), rois.data_ptr(), y.data_ptr()),
            *(None if x_grad is None else x_grad.data_ptr(), most),
        )
        run = lambda begin, end: int(_roi(*where, begin, end))  # noqa: E731
        in_parts(run, _roi_parts(where[0]), 4 * y.numel() + x_BCHW.numel())
    return y if x_grad is None else x_grad


_nms = cpu.function("dlp_nms", c_int, c_void_p, c_size_t, c_void_p, c_size_t, c_float, c_void_p)
_soft_nms = cpu.function(
    "dlp_soft_nms", c_ssize_t, c_void_p, c_void_p, c_size_t, *[c_float] * 3, *[c_void_p] * 2
)


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou: float) -> Tensor:
    """Do what ``reference.batched_nms`` says."""
    order = scores.argsort(descending=True, stable=True)
    ends = torch.tensor([len(boxes)])
    if classes is not None:
        order = order[classes[order].argsort(stable=True)]
        sorted = classes[order]
        ends = torch.cat([(sorted[1:] != sorted[:-1]).nonzero().flatten() + 1, ends])
    planes = boxes[order].t().contiguous()
    gone = torch.zeros(len(boxes), dtype=torch.int32)
    where = (planes.data_ptr(), len(boxes), ends.data_ptr(), len(ends))
    cpu.check(_nms(*where, iou, gone.data_ptr()))
    kept = order[gone == 0]
    if classes is not None:  # best first over all classes, the first of equals before the others
        kept = kept.sort().values
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return kept


def soft_nms(
    boxes: Tensor, scores: Tensor, iou: float, sigma: float, least: float
) -> tuple[Tensor, Tensor]:
    """Do what ``reference.soft_nms`` says."""
    planes, left = boxes.t().contiguous(), scores.clone()
    kept, worth = torch.empty(len(boxes), dtype=torch.int64), torch.empty(len(boxes))
    found = _soft_nms(
        planes.data_ptr(), left.data_ptr(), len(boxes), iou, sigma, least, kept.data_ptr(),
        worth.data_ptr(),
    )  # fmt: skip
    count = cpu.check(found)
    return kept[:count].clone(), worth[:count].clone()


_segment = cpu.function(
    "dlp_segment", c_int, *[c_void_p] * 3, *[c_size_t] * 2, c_double, c_int64, c_void_p
)


def segment(
    weights_E: Tensor, from_E: Tensor, to_E: Tensor, pixels: int, scale: float, least: int
) -> Tensor:
    """Do what ``reference.segment`` says; weights are float32, places int64."""
    weights_E, from_E, to_E = (one.contiguous() for one in (weights_E, from_E, to_E))
    regions_N = torch.empty(pixels, dtype=torch.int64)
    edges = (weights_E.data_ptr(), from_E.data_ptr(), to_E.data_ptr(), len(weights_E))
    cpu.check(_segment(*edges, pixels, scale, least, regions_N.data_ptr()))
    return regions_N
