"""What every vision operator means, in plain torch: the definition of truth for C and Triton.

Any floating dtype, any device. Positions are computed in the dtype of the offsets or the rois,
pixels and weights in that of x. Each ``*_backward`` is the derivative of its function, written
out, since operators cannot call autograd.

Shapes: B images, C channels, H x W pixels, O output channels, R rois, K kernel positions,
y x w of an output (YW), N boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The kernel of a convolution and how it walks; everything is (y, x)."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def places(self) -> int:
        """Return the number of kernel positions, K."""
        return self.kernel[0] * self.kernel[1]

    def output(self, height: int, width: int) -> Pair:
        """Return rows and columns of the output for an image of this size."""
        rows, columns = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return rows, columns


# ---- deformable sampling ----


def deform_sample(x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool) -> Tensor:
    """Read every kernel position where its offset says (arXiv:1703.06211).

    A position between pixels is interpolated bilinearly; pixels outside are 0. With integer,
    offsets are rounded (half to even) and one pixel is read.

    Args:
        x_BCHW: images.
        offset: [B, 2K, rows, columns], channels (y0, x0, y1, x1, ...), in pixels.
        window: kernel, stride, padding, dilation.
        integer: round the offsets.

    Returns:
        Columns [B, C, K, rows, columns].
    """
    rows, columns = offset.shape[2:]
    cols = x_BCHW.new_zeros((*x_BCHW.shape[:2], window.places * rows * columns))
    for at, weight, _, _ in _corners(x_BCHW, offset, window, integer):
        cols += _read(x_BCHW, at) * weight.unsqueeze(1)
    return cols.view(*x_BCHW.shape[:2], window.places, rows, columns)


def deform_sample_backward(
    grad: Tensor, x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients by x and by the offset, which is zero for rounded offsets."""
    grad_BCP = grad.flatten(2)
    x_grad = torch.zeros_like(x_BCHW, memory_format=torch.contiguous_format)
    y_grad = offset.new_zeros((x_BCHW.shape[0], grad_BCP.shape[2]))
    z_grad = torch.zeros_like(y_grad)
    for at, weight, slope_y, slope_x in _corners(x_BCHW, offset, window, integer):
        where = at.unsqueeze(1).expand_as(grad_BCP)
        x_grad.flatten(2).scatter_add_(2, where, grad_BCP * weight.unsqueeze(1))
        dot = (grad_BCP * _read(x_BCHW, at)).sum(1)
        y_grad += dot * slope_y
        z_grad += dot * slope_x
    by_place = (len(offset), window.places, 1, *offset.shape[2:])
    both = torch.cat([y_grad.view(by_place), z_grad.view(by_place)], 2)
    offset_grad = torch.zeros_like(offset) if integer else both.reshape(offset.shape)
    return x_grad, offset_grad


def _read(x_BCHW: Tensor, at: Tensor) -> Tensor:
    index = at.unsqueeze(1).expand(-1, x_BCHW.shape[1], -1)
    return x_BCHW.flatten(2).gather(2, index)


def _corners(
    x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield index, weight and the weight's slopes by y and x of the four pixels around."""
    height, width = x_BCHW.shape[2:]
    y, x = _positions(offset.round() if integer else offset, window)
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    top, left = y.floor(), x.floor()
    fy, fx = y - top, x - left
    for down, by_y, sign_y in ((0, 1 - fy, -1), (1, fy, 1)):
        for right, by_x, sign_x in ((0, 1 - fx, -1), (1, fx, 1)):
            i, j = (top + down).long(), (left + right).long()
            there = (inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)).to(offset.dtype)
            at = i.clamp(0, height - 1) * width + j.clamp(0, width - 1)
            kinds = (there * by_y * by_x, there * by_x * sign_y, there * by_y * sign_x)
            weight, slope_y, slope_x = (kind.to(x_BCHW.dtype) for kind in kinds)
            yield at, weight, slope_y, slope_x


def _positions(offset: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Return y and x, [B, K * rows * columns] each, in pixels."""
    batch, _, rows, columns = offset.shape
    by_place = offset.reshape(batch, window.places, 2, rows, columns)
    ranges = [torch.arange(n, device=offset.device) for n in (*window.kernel, rows, columns)]
    ky, kx, row, column = torch.meshgrid(*ranges, indexing="ij")
    (sy, sx), (py, px), (dy, dx) = window.stride, window.padding, window.dilation
    base_y = (row * sy - py + ky * dy).reshape(window.places, rows, columns)
    base_x = (column * sx - px + kx * dx).reshape(window.places, rows, columns)
    y = base_y.to(offset.dtype) + by_place[:, :, 0]
    x = base_x.to(offset.dtype) + by_place[:, :, 1]
    return y.flatten(1), x.flatten(1)


# ---- regions of interest ----


@dataclass(frozen=True)
class Bins:
    """How a region is cut: (y, x) bins, map pixels per image pixel, samples per bin, half pixel.

    Args:
        size: bins along y and x.
        scale: coordinates of rois times this are coordinates of the map.
        samples: along each axis of a bin; 0 takes one for every pixel of the bin, at most MOST.
        aligned: pixel centres are at half coordinates, and regions may be smaller than a pixel.
    """

    size: Pair
    scale: float = 1.0
    samples: int = 0
    aligned: bool = True


MOST = 4096
TOGETHER = 32
"""Regions whose rows are in memory at the same time."""


def roi_align(x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Average bilinear samples in every bin of every region (arXiv:1703.06870): [R, C, *size].

    A sample's weight is the product of one along y and one along x, so a region is two matrix
    products, Y x X'. Samples more than a pixel outside count as 0; up to there they read the edge.
    """
    y = x_BCHW.new_zeros((len(rois), x_BCHW.shape[1], *bins.size))
    for b, some, by_y, by_x in _regions(x_BCHW, rois, bins):
        rows_HCW = x_BCHW[b].transpose(0, 1).flatten(1)
        tall = (by_y.flatten(0, 1) @ rows_HCW).view(len(some), -1, x_BCHW.shape[3])
        wide = torch.bmm(tall, by_x.transpose(1, 2))  # [r, bins_y * C, bins_x]
        y[some] = wide.view(len(some), bins.size[0], -1, bins.size[1]).transpose(1, 2)
    return y


def roi_align_backward(grad: Tensor, x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Return the gradient by x: the sum of Y' g X over an image's regions."""
    channels, height, width = x_BCHW.shape[1:]
    x_grad = torch.zeros_like(x_BCHW, memory_format=torch.contiguous_format)
    for b, some, by_y, by_x in _regions(x_BCHW, rois, bins):
        tall = grad[some].transpose(1, 2).flatten(1, 2) @ by_x  # [r, bins_y * C, W]
        rows_HCW = by_y.flatten(0, 1).t() @ tall.reshape(-1, channels * width)
        x_grad[b] += rows_HCW.view(height, channels, width).transpose(0, 1)
    return x_grad


def _regions(
    x_BCHW: Tensor, rois: Tensor, bins: Bins
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield an image, some of its regions, and their weights along y and along x."""
    for b in range(len(x_BCHW)):
        mine = (rois[:, 0] == b).nonzero().flatten()
        for begin in range(0, len(mine), TOGETHER):
            some = mine[begin : begin + TOGETHER]
            _, x0, y0, x1, y1 = rois[some].unbind(1)
            by_y = axis_weights(y0, y1, 0, x_BCHW.shape[2], bins)
            by_x = axis_weights(x0, x1, 1, x_BCHW.shape[3], bins)
            yield b, some, by_y.to(x_BCHW.dtype), by_x.to(x_BCHW.dtype)


def axis_weights(low: Tensor, high: Tensor, axis: int, pixels: int, bins: Bins) -> Tensor:
    """Return what each pixel of an axis counts for each bin, [R, bins, pixels]."""
    shift = 0.5 if bins.aligned else 0.0
    start = low * bins.scale - shift
    length = (high * bins.scale - shift - start).clamp(min=0.0 if bins.aligned else 1.0)
    size = length / bins.size[axis]
    asked = size.ceil().nan_to_num(1.0)
    count = torch.full_like(size, bins.samples) if bins.samples > 0 else asked.clamp(1, MOST)
    weights = low.new_zeros((len(low), bins.size[axis], pixels))
    bin = torch.arange(bins.size[axis], device=low.device, dtype=low.dtype)
    for sample in range(int(count.max()) if len(low) else 0):
        p = start[:, None] + (bin + ((sample + 0.5) / count)[:, None]) * size[:, None]
        inside = (p >= -1) & (p <= pixels) & (sample < count)[:, None]
        p = torch.where(inside, p, 0).clamp(0, pixels - 1)
        left = p.long()
        part, share = p - left, inside / count[:, None]
        weights.scatter_add_(2, left[..., None], ((1 - part) * share)[..., None])
        right = (left + 1).clamp(max=pixels - 1)  # its part is 0 at the edge
        weights.scatter_add_(2, right[..., None], (part * share)[..., None])
    return weights


def roi_pool(x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Take the largest value in every whole-pixel bin of every region (arXiv:1504.08083).

    Corners are rounded (half away from zero), both belong to the region, and bins reach out to
    whole pixels. A bin without pixels is 0.
    """
    y = x_BCHW.new_zeros((len(rois), x_BCHW.shape[1], *bins.size))
    for r, roi in enumerate(rois):
        if 0 <= roi[0] < len(x_BCHW):
            y[r] = _largest(x_BCHW[int(roi[0])], roi, bins)[0]
    return y


def roi_pool_backward(grad: Tensor, x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Return the gradient by x: that of a bin goes to its largest pixel, the first of equals."""
    x_grad = torch.zeros_like(x_BCHW, memory_format=torch.contiguous_format)
    for r, roi in enumerate(rois):
        if 0 <= roi[0] < len(x_BCHW):
            _, at, there = _largest(x_BCHW[int(roi[0])], roi, bins)
            by = torch.where(there, grad[r], 0).flatten(1)
            x_grad[int(roi[0])].flatten(1).scatter_add_(1, at.flatten(1), by)
    return x_grad


def _largest(x_CHW: Tensor, roi: Tensor, bins: Bins) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bins' largest values, their flat positions, and which bins have pixels."""
    in_y = _pixels(roi[2], roi[4], 0, x_CHW.shape[1], bins)
    in_x = _pixels(roi[1], roi[3], 1, x_CHW.shape[2], bins)
    there = in_y.any(1)[:, None] & in_x.any(1)
    rows, columns = torch.where(in_x, x_CHW[:, :, None], -torch.inf).max(3)  # [C, H, bins_x]
    rows_CXH = rows.transpose(1, 2)[:, None]
    best, row = torch.where(in_y[:, None], rows_CXH, -torch.inf).max(3)  # [C, bins_y, bins_x]
    column = columns.gather(1, row)
    return torch.where(there, best, 0), row * x_CHW.shape[2] + column, there


def _pixels(low: Tensor, high: Tensor, axis: int, pixels: int, bins: Bins) -> Tensor:
    """Return which pixels of an axis belong to each bin, [bins, pixels]."""
    start, end = (
        (p * bins.scale).abs().add(0.5).floor() * (p * bins.scale).sign() for p in (low, high)
    )
    size = (end - start + 1).clamp(min=1) / bins.size[axis]
    bin = torch.arange(bins.size[axis], device=low.device, dtype=low.dtype)
    first = ((bin * size).floor() + start)[:, None]
    last = (((bin + 1) * size).ceil() + start)[:, None]
    pixel = torch.arange(pixels, device=low.device)
    return (pixel >= first) & (pixel < last)


# ---- suppression of overlapping boxes ----


def overlaps(boxes: Tensor) -> Tensor:
    """Return intersection over union of all pairs, [N, N]; not a number for two empty boxes."""
    x0, y0, x1, y1 = boxes.unbind(1)
    area = (x1 - x0) * (y1 - y0)
    wide = torch.minimum(x1[:, None], x1) - torch.maximum(x0[:, None], x0)
    high = torch.minimum(y1[:, None], y1) - torch.maximum(y0[:, None], y0)
    common = wide.clamp(min=0) * high.clamp(min=0)
    return common / (area[:, None] + area - common)


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou: float) -> Tensor:
    """Return what stays, best first: boxes that no better one of their class covers beyond iou.

    Equal scores: the first one is better. Needs N^2 values of memory.
    """
    order = scores.argsort(descending=True, stable=True)
    covered = (overlaps(boxes[order]) > iou).triu(1)
    if classes is not None:
        covered &= classes[order][:, None] == classes[order]
    stays = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for i in range(len(boxes)):
        if stays[i]:
            stays &= ~covered[i]
    return order[stays]


def soft_nms(
    boxes: Tensor, scores: Tensor, iou: float, sigma: float, least: float
) -> tuple[Tensor, Tensor]:
    """Take the best box, lower the scores of those it covers, and so on (arXiv:1704.04503).

    Scores are multiplied by 1 - overlap where that is above iou, or with sigma > 0 by
    exp(-overlap^2 / sigma). Ends when the best score left is below ``least``.

    Returns:
        What was taken, in this order, and with which score.
    """
    pairs = overlaps(boxes).nan_to_num(0.0)
    left = scores.clone()
    kept: list[int] = []
    worth: list[Tensor] = []
    while len(kept) < len(boxes):
        best = int(left.argmax())
        if not left[best] >= least:
            break
        kept.append(best)
        worth.append(left[best].clone())
        taken = pairs[best]
        factor = (-taken * taken / sigma).exp() if sigma > 0 else 1 - taken * (taken > iou)
        left = torch.where(left < 0, left, left * factor)
        left[best] = -1
    index = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return index, torch.stack(worth) if worth else scores.new_empty(0)


# ---- first regions ----


def segment(
    weights_E: Tensor, from_E: Tensor, to_E: Tensor, pixels: int, scale: float, least: int
) -> Tensor:
    """Join pixels along edges whose weights rise; return regions_N, a pixel that stands for each.

    An edge joins two regions that differ no more inside than along it: its weight is at most
    min(Int(a) + scale / |a|, Int(b) + scale / |b|). Then those of fewer than ``least`` pixels go to
    what they are most like. Source: Felzenszwalb and Huttenlocher, IJCV 2004.
    """
    parent, sizes, limit = list(range(pixels)), [1] * pixels, [scale] * pixels
    edges = list(zip(weights_E.tolist(), from_E.tolist(), to_E.tolist(), strict=True))

    def root(pixel: int) -> int:
        while parent[pixel] != pixel:
            pixel = parent[pixel]
        return pixel

    for weight, one, other in edges:
        a, b = root(one), root(other)
        if a != b and weight <= min(limit[a], limit[b]):
            parent[b], sizes[a] = a, sizes[a] + sizes[b]
            limit[a] = weight + scale / sizes[a]
    for _, one, other in edges:
        a, b = root(one), root(other)
        if a != b and min(sizes[a], sizes[b]) < least:
            parent[b], sizes[a] = a, sizes[a] + sizes[b]
    return torch.tensor([root(pixel) for pixel in range(pixels)], dtype=torch.int64)
