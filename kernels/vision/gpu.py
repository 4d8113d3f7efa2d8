"""Triton kernels for a GPU: the elastic step, and deformable sampling with its derivative.

Imported only where Triton is; ``kernels/reference.py`` and ``kernels/vision/reference.py`` say
what they mean. With TRITON_INTERPRET=1 they run on the CPU, slowly, for tests. Sums over channels
and into pixels are atomic: their last bits change from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.vision.reference import Window

BLOCK = 1024
PIXELS, CHANNELS = 64, 8
"""Output pixels and channels that one program works on."""


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _elastic(y, x, rate, n, size: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    there = at < n
    a, b = tl.load(y + at, mask=there), tl.load(x + at, mask=there)
    step = rate * (b - a)
    tl.store(y + at, a + step, mask=there)
    tl.store(x + at, b - step, mask=there)


def elastic(y: Tensor, x: Tensor, rate: float) -> None:
    """Average two vectors elastically in place: d = rate (x - y); y += d; x -= d.

    Raises:
        ValueError: they are not two contiguous tensors of float32 and of one size.
    """
    for one in (y, x):
        if one.dtype != torch.float32 or not one.is_contiguous() or one.shape != y.shape:
            raise ValueError(
                f"elastic of {list(y.shape)} {y.dtype} and {list(x.shape)} {x.dtype} - allowed: "
                "two contiguous tensors of float32 and one shape - do: convert them"
            )
    _elastic[(triton.cdiv(y.numel(), BLOCK),)](y, x, rate, y.numel(), BLOCK)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _position(offset, base_y, base_x, b, k, p, there, g, integer: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return where output pixels p read, and whether that is inside the image."""
    rows, columns, places = tl.load(g + 3), tl.load(g + 4), tl.load(g + 5) * tl.load(g + 6)
    from_y = offset + ((b * places + k) * 2) * rows * columns + p
    dy = tl.load(from_y, mask=there, other=0.0)
    dx = tl.load(from_y + rows * columns, mask=there, other=0.0)
    if integer:  # half to even, as torch.round
        dy, dx = _round(dy), _round(dx)
    y, x = base_y.to(tl.float32) + dy, base_x.to(tl.float32) + dx
    height, width = tl.load(g + 1), tl.load(g + 2)
    inside = there & (y > -1) & (y < height) & (x > -1) & (x < width)
    return tl.where(inside, y, 0.0), tl.where(inside, x, 0.0), inside


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _round(v):  # type: ignore[no-untyped-def]
    low = tl.floor(v)
    part = v - low
    odd = low - 2.0 * tl.floor(low * 0.5)
    return tl.where((part > 0.5) | ((part == 0.5) & (odd == 1.0)), low + 1.0, low)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _deform(  # type: ignore[no-untyped-def]
    x, offset, cols, x_grad, offset_grad, g, integer: tl.constexpr, backward: tl.constexpr,
    pixels: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Fill columns; or, backward, take their gradient to the image and the offsets."""
    count, height, width = tl.load(g), tl.load(g + 1), tl.load(g + 2)
    rows, columns, wide = tl.load(g + 3), tl.load(g + 4), tl.load(g + 6)
    places = tl.load(g + 5) * wide
    p = tl.program_id(0) * pixels + tl.arange(0, pixels)
    b, k = tl.program_id(1).to(tl.int64) // places, tl.program_id(1) % places
    c = tl.program_id(2) * channels + tl.arange(0, channels)
    there = p < rows * columns
    base_y = p // columns * tl.load(g + 7) - tl.load(g + 9) + k // wide * tl.load(g + 11)
    base_x = p % columns * tl.load(g + 8) - tl.load(g + 10) + k % wide * tl.load(g + 12)
    y, z, inside = _position(offset, base_y, base_x, b, k, p, there, g, integer)
    top, left = tl.floor(y), tl.floor(z)
    fy, fx = y - top, z - left
    plane = ((b * count + c) * height * width)[:, None]
    to = cols + ((b * count + c) * places + k)[:, None] * rows * columns + p[None, :]
    both = (c < count)[:, None] & there[None, :]
    total = tl.zeros((channels, pixels), tl.float32)
    along_y, along_x = tl.zeros((pixels,), tl.float32), tl.zeros((pixels,), tl.float32)
    if backward:
        total = tl.load(to, mask=both, other=0.0)
    for corner in tl.static_range(1 if integer else 4):
        down, right = corner // 2, corner % 2
        i, j = top.to(tl.int32) + down, left.to(tl.int32) + right
        in_map = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        by_y, by_x = (fy if down else 1 - fy), (fx if right else 1 - fx)
        weight = tl.where(in_map, by_y * by_x, 0.0)[None, :]
        at = plane + (i * width + j)[None, :]
        mask = (c < count)[:, None] & in_map[None, :]
        if backward:
            tl.atomic_add(x_grad + at, weight * total, mask=mask)
        if not (backward and integer):
            value = tl.load(x + at, mask=mask, other=0.0)
            if backward:
                dot = tl.sum(value * total, 0)
                along_y += dot * (by_x if down else -by_x)
                along_x += dot * (by_y if right else -by_y)
            else:
                total += weight * value
    if not backward:
        tl.store(to, total, mask=both)
    elif not integer:
        at_y = offset_grad + ((b * places + k) * 2) * rows * columns + p
        tl.atomic_add(at_y, along_y, mask=there)
        tl.atomic_add(at_y + rows * columns, along_x, mask=there)


def _run(
    x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool, cols: Tensor,
    grads: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    batch, count = x_BCHW.shape[:2]
    rows, columns = offset.shape[2:]
    steps = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    sizes = torch.tensor([*x_BCHW.shape[1:], rows, columns, *steps], device=x_BCHW.device)
    grid = (
        triton.cdiv(rows * columns, PIXELS), batch * window.places, triton.cdiv(count, CHANNELS)
    )  # fmt: skip
    x_grad, offset_grad = grads or (cols, cols)
    if cols.numel():
        _deform[grid](
            x_BCHW, offset, cols, x_grad, offset_grad, sizes.int(), integer, grads is not None,
            PIXELS, CHANNELS,
        )  # fmt: skip


def deform_sample(x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool) -> Tensor:
    """Do what ``reference.deform_sample`` says, for float32."""
    cols = x_BCHW.new_empty((*x_BCHW.shape[:2], window.places, *offset.shape[2:]))
    _run(x_BCHW.contiguous(), offset.contiguous(), window, integer, cols, None)
    return cols


def deform_sample_backward(
    grad: Tensor, x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool
) -> tuple[Tensor, Tensor]:
    """Do what ``reference.deform_sample_backward`` says, for float32."""
    x_BCHW, offset = x_BCHW.contiguous(), offset.contiguous()
    grads = torch.zeros_like(x_BCHW), torch.zeros_like(offset)
    _run(x_BCHW, offset, window, integer, grad.contiguous(), grads)
    return grads
