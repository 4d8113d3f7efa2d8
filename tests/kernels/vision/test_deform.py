"""Deformable sampling and convolution: C against the definition, ONNX, numeric derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import node
from torch.nn import functional as F

from kernels.vision import deform_conv2d, deform_sample, native, reference
from kernels.vision.reference import Window

SMALL = st.tuples(st.integers(1, 3), st.integers(1, 3))
WINDOWS = st.builds(
    Window, kernel=SMALL, stride=SMALL, padding=st.tuples(st.integers(0, 2), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)  # fmt: skip


def scene(
    seed: int, channels: int, window: Window, reach: float = 2.0, size: tuple[int, int] = (7, 19)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two images and offsets that reach a few pixels, outside of the images, too."""
    rng = torch.Generator().manual_seed(seed)
    x_BCHW = torch.randn(2, channels, *size, generator=rng)
    shape = (2, 2 * window.places, *window.output(*size))
    return x_BCHW, torch.randn(shape, generator=rng) * reach


def steps(window: Window) -> tuple[tuple[int, int], ...]:
    return window.kernel, window.stride, window.padding, window.dilation


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3, 16, 19, 33]), window=WINDOWS,
    reach=st.sampled_from([0.0, 0.7, 8.0]), integer=st.booleans(),
)  # fmt: skip
def test_c_does_what_the_definition_says(
    seed: int, channels: int, window: Window, reach: float, integer: bool
) -> None:
    x_BCHW, offset = scene(seed, channels, window, reach)
    ours = native.deform_sample(x_BCHW, offset, window, integer)
    torch.testing.assert_close(ours, reference.deform_sample(x_BCHW, offset, window, integer))
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    arguments = (grad, x_BCHW, offset, window, integer)
    for by_c, by in zip(
        native.deform_sample_backward(*arguments), reference.deform_sample_backward(*arguments),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(by_c, by, atol=1e-4, rtol=1e-4)


def test_derivatives_are_those_of_the_differences() -> None:
    window = Window((2, 3), (1, 2), (1, 1), (1, 1))
    x_BCHW, offset = (one.double()[:1] for one in scene(1, 2, window, 1.3, (3, 4)))
    weight, bias = torch.randn(3, 2, 2, 3).double(), torch.randn(3).double()
    inputs = [one.requires_grad_() for one in (x_BCHW, offset, weight, bias)]
    assert torch.autograd.gradcheck(lambda x, o: deform_sample(x, o, *steps(window)), inputs[:2])
    assert torch.autograd.gradcheck(
        lambda *all: deform_conv2d(*all, *steps(window)[1:]), inputs, fast_mode=True
    )


def test_rounded_offsets_get_no_gradient_and_the_image_does() -> None:
    window = Window((3, 3), padding=(1, 1))
    x_BCHW, offset = (one.double().requires_grad_() for one in scene(2, 1, window, 1.3, (3, 4)))
    read = lambda x: deform_sample(x, offset, 3, padding=1, integer=True)  # noqa: E731
    assert torch.autograd.gradcheck(read, (x_BCHW,))
    read(x_BCHW).sum().backward()
    assert offset.grad is None and x_BCHW.grad is not None and x_BCHW.grad.any()


@pytest.mark.parametrize("integer", [False, True])
def test_without_offset_the_columns_are_those_of_unfold(integer: bool) -> None:
    window = Window((3, 3), (2, 1), (1, 1), (1, 2))
    x_BCHW, offset = scene(3, 4, window)
    cols = deform_sample(x_BCHW, torch.zeros_like(offset), *steps(window), integer)
    expected = F.unfold(x_BCHW, (3, 3), (1, 2), (1, 1), (2, 1))
    assert cols.flatten(3).flatten(1, 2).equal(expected)


def test_rounding_is_a_rounded_offset() -> None:
    window = Window((3, 3), padding=(1, 1))
    x_BCHW, offset = scene(4, 4, window)
    rounded = deform_sample(x_BCHW, offset, 3, padding=1, integer=True)
    assert rounded.equal(deform_sample(x_BCHW, offset.round(), 3, padding=1))


def test_without_offset_it_is_the_convolution() -> None:
    window = Window((3, 2), (2, 1), (1, 1), (1, 2))
    x_BCHW, offset = scene(5, 6, window)
    weight, bias = torch.randn(4, 6, 3, 2), torch.randn(4)
    ours = deform_conv2d(x_BCHW, offset * 0, weight, bias, *steps(window)[1:])
    torch.testing.assert_close(
        ours, F.conv2d(x_BCHW, weight, bias, *steps(window)[1:]), atol=1e-4, rtol=1e-4
    )


def test_onnx_runtime_convolves_the_same() -> None:
    window = Window((3, 2), (2, 1), (1, 1), (1, 2))
    x_BCHW, offset = scene(6, 5, window)
    weight, bias = torch.randn(4, 5, 3, 2), torch.randn(4)
    ours = deform_conv2d(x_BCHW, offset, weight, bias, *steps(window)[1:])
    theirs = node(
        "DeformConv", [one.numpy() for one in (x_BCHW, weight, offset, bias)],
        kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 1], dilations=[1, 2],
        offset_group=1, group=1,
    )  # fmt: skip
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4)


def test_convolution_in_c_has_the_derivatives_of_the_definition() -> None:
    x_BCHW, offset = scene(7, 5, Window((3, 3), padding=(1, 1)))
    inputs = (x_BCHW, offset, torch.randn(4, 5, 3, 3), torch.randn(4))
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [one.detach().to(dtype).requires_grad_() for one in inputs]
        deform_conv2d(*leaves, padding=1).square().sum().backward()
        found.append([one.grad for one in leaves])
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_only_inputs_are_kept_for_backward() -> None:
    window = Window((3, 3), padding=(1, 1))
    inputs = [one.requires_grad_() for one in (*scene(8, 5, window), torch.randn(4, 5, 3, 3))]
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        deform_sample(*inputs[:2], 3, padding=1)
        deform_conv2d(*inputs, padding=1)
    assert len(kept) == 5 and set(kept) <= {one.data_ptr() for one in inputs}


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window((3, 3), padding=(1, 1))
    x_BCHW, offset = scene(9, 40, window)
    cols = native.deform_sample(x_BCHW, offset, window, False)
    by = native.deform_sample_backward(cols, x_BCHW, offset, window, False)
    monkeypatch.setattr(native, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert native.deform_sample(x_BCHW, offset, window, False).equal(cols)
    again = native.deform_sample_backward(cols, x_BCHW, offset, window, False)
    assert all(a.equal(b) for a, b in zip(again, by, strict=True))


def test_offsets_that_are_no_numbers_read_zero() -> None:
    x_BCHW = torch.ones(1, 3, 4, 4)
    offset = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30]).repeat(8)
    offset = offset.view(1, 2, 4, 4)
    for place in (native, reference):
        for integer in (False, True):
            cols = place.deform_sample(x_BCHW, offset, Window((1, 1)), integer)
            assert not cols.any()


def test_no_images_and_no_channels() -> None:
    assert deform_sample(torch.zeros(0, 3, 5, 5), torch.zeros(0, 18, 3, 3), 3).numel() == 0
    assert deform_sample(torch.zeros(2, 0, 5, 5), torch.zeros(2, 18, 3, 3), 3).numel() == 0
    empty = torch.zeros(0, 3, 5, 5, requires_grad=True)
    y = deform_conv2d(empty, torch.zeros(0, 18, 3, 3), torch.zeros(4, 3, 3, 3))
    y.sum().backward()
    assert y.shape == (0, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, o, w: deform_sample(x[0], o, 3), r"x \[3, 5, 5\].*allowed.*do:"),
        (lambda x, o, w: deform_sample(x, o, 3, padding=1), r"offset .*allowed: \[1, 18, 5, 5\]"),
        (lambda x, o, w: deform_sample(x, o, 7), "leaves -1 x -1 pixels.*allowed.*do:"),
        (lambda x, o, w: deform_sample(x, o, 3, stride=0), "stride 0 - allowed.*do:"),
        (lambda x, o, w: deform_conv2d(x, o, w[:, :2]), r"weight \[4, 2, 3, 3\].*allowed.*do:"),
        (lambda x, o, w: deform_conv2d(x, o, w, w[0, 0, 0]), r"bias \[3\] - allowed: \[4\]"),
    ],
)
def test_wrong_arguments_end_in_one_line(call: object, says: str) -> None:
    tensors = (torch.zeros(1, 3, 5, 5), torch.zeros(1, 18, 3, 3), torch.zeros(4, 3, 3, 3))
    with pytest.raises(ValueError, match=says) as caught:
        call(*tensors)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_torch_accepts_the_operators() -> None:
    x_BCHW, offset = scene(10, 2, Window((2, 2)), 0.7, (4, 5))
    weight = torch.randn(3, 2, 2, 2)
    x_BCHW, offset, weight = (one.requires_grad_() for one in (x_BCHW, offset, weight))
    ours, one = torch.ops.dlplatform, [1, 1]
    for integer in (False, True):
        arguments = (x_BCHW, offset, [2, 2], one, [0, 0], one, integer)
        torch_ops.check(ours.deform_sample.default, arguments)
    torch_ops.check(ours.deform_conv2d.default, (x_BCHW, offset, weight, None, one, [0, 0], one))


def test_shapes_are_known_without_data() -> None:
    x_BCHW, offset = scene(12, 3, Window((3, 3)))
    weight = torch.randn(4, 3, 3, 3)
    torch_ops.shapes_agree(lambda x, o, w: deform_conv2d(x, o, w), x_BCHW, offset, weight)
    torch_ops.shapes_agree(lambda x, o: deform_sample(x, o, 3), x_BCHW, offset)


@pytest.mark.slow
def test_compiled_it_does_the_same() -> None:
    x_BCHW, offset = scene(11, 3, Window((3, 3)))
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    whole = torch.compile(
        lambda *all: deform_conv2d(*all).relu(), fullgraph=True, backend="aot_eager"
    )
    y = whole(x_BCHW, offset, weight)
    assert y.equal(deform_conv2d(x_BCHW, offset, weight).relu())
    y.sum().backward()
    assert weight.grad is not None and weight.grad.any()
