"""Deformable sampling and convolution (arXiv:1703.06211) as torch operators.

Only the inputs are kept for backward: positions and columns are computed again.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from kernels.vision import native, reference
from kernels.vision.operators import pair, register, require
from kernels.vision.reference import Window

Steps = int | tuple[int, int]
TRITON = find_spec("triton") is not None
WINDOW = "int[] kernel, int[] stride, int[] padding, int[] dilation"


def deform_sample(
    x_BCHW: Tensor,
    offset: Tensor,
    kernel: Steps,
    stride: Steps = 1,
    padding: Steps = 0,
    dilation: Steps = 1,
    integer: bool = False,
) -> Tensor:
    """Return columns [B, C, K, rows, columns]: x where every kernel position's offset says.

    Bilinear between pixels, 0 outside the image; ``integer`` rounds the offsets (half to even)
    and reads one pixel, then offsets get no gradient.

    Args:
        x_BCHW: images.
        offset: [B, 2K, rows, columns] for all channels, (y0, x0, y1, x1, ...), in pixels.
        kernel: K = height x width of the kernel.
        stride: of the output; like padding and dilation a number or (y, x).
        padding: rows and columns of zeros around the image.
        dilation: distance of kernel positions.
        integer: round the offsets.

    Raises:
        ValueError: shapes or sizes do not fit, in one line.
    """
    window = _window(kernel, stride, padding, dilation)
    _check(x_BCHW, offset, window)
    return _SAMPLE(x_BCHW, offset, *_steps(window), integer)  # type: ignore[no-any-return]


def deform_conv2d(
    x_BCHW: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Steps = 1,
    padding: Steps = 0,
    dilation: Steps = 1,
) -> Tensor:
    """Convolve with every kernel position moved by its offset: [B, O, rows, columns].

    Args:
        x_BCHW: images.
        offset: as in ``deform_sample``; zeros make it an ordinary convolution.
        weight: [O, C, height, width].
        bias: [O], or None.
        stride: as in ``deform_sample``, like padding and dilation.
        padding: rows and columns of zeros around the image.
        dilation: distance of kernel positions.

    Raises:
        ValueError: shapes or sizes do not fit, in one line.
    """
    require(
        weight.dim() == 4 and x_BCHW.dim() == 4 and weight.shape[1] == x_BCHW.shape[1],
        f"weight {list(weight.shape)} for x {list(x_BCHW.shape)} - allowed: weight [O, C, height, "
        "width] and x [B, C, H, W] of as many channels - do: change the weight",
    )
    require(
        bias is None or bias.shape == weight.shape[:1],
        f"bias {bias is not None and list(bias.shape)} - allowed: [{weight.shape[0]}], one value "
        "for each output channel - do: change the bias",
    )
    window = _window((weight.shape[2], weight.shape[3]), stride, padding, dilation)
    _check(x_BCHW, offset, window)
    steps = _steps(window)[1:]
    dtype = torch.promote_types(x_BCHW.dtype, weight.dtype)  # they differ under autocast
    x_BCHW, weight = x_BCHW.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    return _CONV(x_BCHW, offset, weight, bias, *steps)  # type: ignore[no-any-return]


def _window(kernel: Steps, stride: Steps, padding: Steps, dilation: Steps) -> Window:
    return Window(
        pair(kernel, "kernel", 1), pair(stride, "stride", 1), pair(padding, "padding", 0),
        pair(dilation, "dilation", 1),
    )  # fmt: skip


def _steps(window: Window) -> tuple[list[int], ...]:
    return tuple(map(list, (window.kernel, window.stride, window.padding, window.dilation)))


def _check(x_BCHW: Tensor, offset: Tensor, window: Window) -> None:
    right = x_BCHW.dim() == 4 and x_BCHW.shape[2] * x_BCHW.shape[3] > 0
    require(
        right and x_BCHW.is_floating_point() and offset.is_floating_point(),
        f"x {list(x_BCHW.shape)} of {x_BCHW.dtype}, offset of {offset.dtype} - allowed: floating "
        "point, x [B, C, H, W] with at least one pixel - do: reshape or convert",
    )
    rows, columns = window.output(x_BCHW.shape[2], x_BCHW.shape[3])
    require(
        rows > 0 and columns > 0,
        f"{window} on {list(x_BCHW.shape)} leaves {rows} x {columns} pixels - allowed: at least "
        "1 x 1 - do: pad more, or take a smaller kernel",
    )
    shape = [x_BCHW.shape[0], 2 * window.places, rows, columns]
    require(
        list(offset.shape) == shape,
        f"offset {list(offset.shape)} - allowed: {shape}, [B, 2K, rows, columns] of the output - "
        "do: give the offset convolution the same kernel, stride, padding and dilation",
    )


def _place(*tensors: Tensor) -> Any:
    """Return who works on the tensors: C, Triton or, for everything else, the definition."""
    if native.fits(*tensors):
        return native
    if TRITON and all(t.is_cuda and t.dtype == torch.float32 for t in tensors):
        return import_module("kernels.vision.gpu")
    return reference


def _read(x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool) -> Tensor:
    found = _place(x_BCHW, offset).deform_sample(x_BCHW, offset, window, integer)
    return found  # type: ignore[no-any-return]


def _read_backward(
    grad: Tensor, x_BCHW: Tensor, offset: Tensor, window: Window, integer: bool
) -> tuple[Tensor, Tensor]:
    work = _place(grad, x_BCHW, offset).deform_sample_backward
    return work(grad, x_BCHW, offset, window, integer)  # type: ignore[no-any-return]


# ---- the sampling operator ----


def _sample(x: Tensor, offset: Tensor, *rest: Any) -> Tensor:
    *steps, integer = rest
    return _read(x, offset, Window(*map(tuple, steps)), integer)


def _sample_fake(x: Tensor, offset: Tensor, kernel: list[int], *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:2], kernel[0] * kernel[1], *offset.shape[2:]))


def _sample_backward(grad: Tensor, x: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *steps, integer = rest
    return _read_backward(grad, x, offset, Window(*map(tuple, steps)), integer)


def _like(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Return gradients without data: one for each tensor among the inputs."""
    return tuple(
        torch.empty_like(one, memory_format=torch.contiguous_format)
        for one in inputs
        if isinstance(one, Tensor)
    )


def _keep_sample(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, *ctx.rest = inputs
    ctx.save_for_backward(x, offset)


def _derive_sample(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x_grad, offset_grad = _SAMPLE_BACKWARD(grad, *ctx.saved_tensors, *ctx.rest)
    integer = ctx.rest[-1]
    return (x_grad, None if integer else offset_grad, *[None] * len(ctx.rest))


_SAMPLE = register(
    f"deform_sample(Tensor x, Tensor offset, {WINDOW}, bool integer) -> Tensor",
    _sample, _sample_fake, _keep_sample, _derive_sample,
)  # fmt: skip
_SAMPLE_BACKWARD = register(
    f"deform_sample_backward(Tensor grad, Tensor x, Tensor offset, {WINDOW}, bool integer) -> "
    "(Tensor, Tensor)",
    _sample_backward, _like,
)  # fmt: skip


# ---- the convolution operator: columns of a few images at a time, then matrix products ----


def _conv_window(weight: Tensor, steps: tuple[list[int], ...]) -> Window:
    return Window((weight.shape[2], weight.shape[3]), *((s[0], s[1]) for s in steps))


def _few(batch: int) -> range:
    """Return where groups of images begin: one image for each thread, to bound the columns."""
    return range(0, batch, torch.get_num_threads())


def _conv(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *steps: Any) -> Tensor:
    window = _conv_window(weight, steps)
    rows, columns = offset.shape[2:]
    y = x.new_empty((x.shape[0], weight.shape[0], rows * columns))
    flat = weight.flatten(1)
    for begin in _few(len(x)):
        some = slice(begin, begin + torch.get_num_threads())
        cols = _read(x[some], offset[some], window, False).flatten(3).flatten(1, 2)
        torch.matmul(flat, cols, out=y[some])
    if bias is not None:
        y += bias[:, None]
    return y.view(*y.shape[:2], rows, columns)


def _conv_fake(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *steps: Any
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *offset.shape[2:]))


def _conv_backward(
    grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor, *steps: Any
) -> tuple[Tensor, Tensor, Tensor]:
    window = _conv_window(weight, steps)
    rows, columns = offset.shape[2:]
    flat = weight.flatten(1)
    x_grad, offset_grad, weight_grad = _like(grad, x, offset, weight)
    total = torch.zeros_like(flat)
    for begin in _few(len(x)):
        some = slice(begin, begin + torch.get_num_threads())
        grad_BOP = grad[some].flatten(2)
        cols = _read(x[some], offset[some], window, False).flatten(3).flatten(1, 2)
        for one, by in zip(grad_BOP, cols, strict=True):  # in order: the bits repeat
            total.addmm_(one, by.t())
        torch.matmul(flat.t(), grad_BOP, out=cols)
        by_cols = cols.view(len(cols), x.shape[1], window.places, rows, columns)
        found = _read_backward(by_cols, x[some], offset[some], window, False)
        x_grad[some], offset_grad[some] = found
    return x_grad, offset_grad, weight_grad.copy_(total.view_as(weight))


def _keep_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, weight, bias, *ctx.steps = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, offset, weight)


def _derive_conv(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    found = _CONV_BACKWARD(grad, *ctx.saved_tensors, *ctx.steps)
    bias_grad = grad.sum((0, 2, 3)) if ctx.biased else None
    return (*found, bias_grad, None, None, None)


STEPS = "int[] stride, int[] padding, int[] dilation"
_CONV = register(
    f"deform_conv2d(Tensor x, Tensor offset, Tensor weight, Tensor? bias, {STEPS}) -> Tensor",
    _conv, _conv_fake, _keep_conv, _derive_conv,
)  # fmt: skip
_CONV_BACKWARD = register(
    f"deform_conv2d_backward(Tensor grad, Tensor x, Tensor offset, Tensor weight, {STEPS}) -> "
    "(Tensor, Tensor, Tensor)",
    _conv_backward, _like,
)  # fmt: skip
