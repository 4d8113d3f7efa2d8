"""Regions of interest: C against the definition, ONNX Runtime, numeric derivatives, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import node

from kernels.vision import native, reference, roi_align, roi_pool
from kernels.vision.reference import Bins


def scene(seed: int, channels: int = 5, rois: int = 7, most: float = 25.0) -> list[torch.Tensor]:
    """Return two maps and regions in, across and outside of them, some of them empty."""
    rng = torch.Generator().manual_seed(seed)
    x_BCHW = torch.randn(2, channels, 9, 12, generator=rng)
    number = torch.randint(0, 2, (rois, 1), generator=rng).float()
    corner = torch.rand(rois, 2, generator=rng) * (most + 10) - 10
    size = torch.rand(rois, 2, generator=rng) * most - 1
    return [x_BCHW, torch.cat([number, corner, corner + size], 1)]


BINS = st.builds(
    Bins,
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale=st.sampled_from([1.0, 0.5, 0.0625]),
    samples=st.integers(0, 3),
    aligned=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3, 16, 19, 33]), bins=BINS,
    kind=st.sampled_from(["roi_align", "roi_pool"]),
)  # fmt: skip
def test_c_does_what_the_definition_says(seed: int, channels: int, bins: Bins, kind: str) -> None:
    x_BCHW, rois = scene(seed, channels)
    ours = getattr(native, kind)(x_BCHW, rois, bins)
    torch.testing.assert_close(ours, getattr(reference, kind)(x_BCHW, rois, bins))
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    by = [getattr(one, f"{kind}_backward")(grad, x_BCHW, rois, bins) for one in (native, reference)]
    torch.testing.assert_close(by[0], by[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
def test_onnx_runtime_aligns_the_same(samples: int, mode: str) -> None:
    x_BCHW, rois = scene(4, most=20.0)
    rois[:, 3:] = torch.maximum(rois[:, 3:], rois[:, 1:3] + 0.5)
    ours = roi_align(x_BCHW, rois, (3, 2), 0.5, samples, aligned=mode == "half_pixel")
    theirs = node(
        "RoiAlign", [x_BCHW.numpy(), rois[:, 1:].numpy(), rois[:, 0].long().numpy()], opset=16,
        output_height=3, output_width=2, spatial_scale=0.5, sampling_ratio=samples,
        coordinate_transformation_mode=mode,
    )  # fmt: skip
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_onnx_runtime_pools_the_same() -> None:
    x_BCHW, rois = scene(6)
    rois[:, 1:] = rois[:, 1:].round()
    inside = rois.clone()
    inside[:, 1:].clamp_(0, 20)
    inside[:, 3:] = torch.maximum(inside[:, 3:], inside[:, 1:3])
    theirs = node(
        "MaxRoiPool", [x_BCHW.numpy(), inside.numpy()], opset=13, pooled_shape=[2, 3],
        spatial_scale=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(roi_pool(x_BCHW, inside, (2, 3), 0.5).numpy(), theirs)


@pytest.mark.parametrize("samples", [0, 2])
def test_derivatives_are_those_of_the_differences(samples: int) -> None:
    x_BCHW, rois = (one.double() for one in scene(8, channels=2, rois=3, most=12.0))
    x_BCHW = x_BCHW[:, :1, :5, :6].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 2, 0.5, samples), (x_BCHW,))
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois, 2, 0.5), (x_BCHW,))


def test_a_ramp_is_read_at_the_centres_of_bins() -> None:
    x_BCHW = torch.arange(10.0).expand(1, 1, 10, 10).contiguous()
    y = roi_align(x_BCHW, torch.tensor([[0.0, 2, 2, 8, 8]]), 3, sampling_ratio=2)
    assert y[0, 0, 0].tolist() == pytest.approx([2.5, 4.5, 6.5])
    y = roi_align(x_BCHW, torch.tensor([[0.0, 2, 2, 8, 8]]), 3, sampling_ratio=2, aligned=False)
    assert y[0, 0, 0].tolist() == pytest.approx([3.0, 5.0, 7.0])


def test_pooling_sends_the_gradient_to_the_first_largest_pixel() -> None:
    x_BCHW = torch.zeros(1, 1, 4, 4)
    x_BCHW[0, 0, 1, 2] = x_BCHW[0, 0, 3, 3] = 5.0
    x_BCHW.requires_grad_()
    y = roi_pool(x_BCHW, torch.tensor([[0.0, 0, 0, 3, 3]]), 1)
    y.sum().backward()
    assert y.item() == 5 and x_BCHW.grad is not None
    assert x_BCHW.grad.nonzero().tolist() == [[0, 0, 1, 2]]


def test_lists_of_boxes_and_rows_with_numbers_say_the_same() -> None:
    x_BCHW, rois = scene(10)
    rois = rois[rois[:, 0].argsort(stable=True)]
    boxes = [rois[rois[:, 0] == b, 1:] for b in range(2)]
    assert roi_align(x_BCHW, boxes, 2).equal(roi_align(x_BCHW, rois, 2))
    assert roi_pool(x_BCHW, boxes, 2).equal(roi_pool(x_BCHW, rois, 2))


def test_no_regions_and_layouts_of_memory() -> None:
    x_BCHW, rois = scene(11)
    x_BCHW.requires_grad_()
    none = roi_align(x_BCHW, rois[:0], 3)
    none.sum().backward()
    assert none.shape == (0, 5, 3, 3) and x_BCHW.grad is not None and not x_BCHW.grad.any()
    last = x_BCHW.detach().to(memory_format=torch.channels_last)
    assert roi_align(last, rois, 3).equal(roi_align(x_BCHW, rois, 3))
    half = roi_align(x_BCHW.detach().bfloat16(), rois, 3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), roi_align(last, rois, 3), atol=0.1, rtol=0.1)


def test_autocast_leaves_the_definition_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BCHW, rois = scene(14)
    monkeypatch.setattr(native, "fits", lambda *tensors: False)  # as on a GPU
    with torch.autocast("cpu", torch.bfloat16):
        found = roi_align(x_BCHW, rois, 3)
    assert found.equal(roi_align(x_BCHW, rois, 3))


def test_regions_that_are_no_numbers_read_nothing() -> None:
    x_BCHW, _ = scene(12)
    rois = torch.tensor([[0.0, torch.nan, 0, 5, 5], [1, 0, -torch.inf, 5, torch.inf]])
    assert not roi_align(x_BCHW, rois, 2, sampling_ratio=2).any()
    assert roi_pool(x_BCHW, rois, 2).isfinite().all()


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BCHW, rois = scene(13, channels=70)
    whole = roi_align(x_BCHW, rois, 3)
    monkeypatch.setattr(native, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert roi_align(x_BCHW, rois, 3).equal(whole)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, r: roi_align(x[0], r, 2), r"x \[5, 9, 12\].*allowed.*do:"),
        (lambda x, r: roi_align(x, r[:, 1:], 2), r"rois \[7, 4\].*allowed.*do:"),
        (lambda x, r: roi_align(x, [r[:, 1:]], 2), "rois .*allowed: a list of 2 tensors.*do:"),
        (lambda x, r: roi_pool(x, r, 0), "output_size 0 - allowed: an integer from 1 on.*do:"),
        (lambda x, r: roi_pool(x, r + 1, 2), "roi of image .*allowed: whole numbers from 0 to 1"),
    ],
)
def test_wrong_arguments_end_in_one_line(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        call(*scene(1))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_torch_accepts_the_operators() -> None:
    x_BCHW, rois = scene(14, channels=2, rois=3)
    x_BCHW.requires_grad_()
    ours = torch.ops.dlplatform
    torch_ops.check(ours.roi_align.default, (x_BCHW, rois, [2, 3], 0.5, 2, True))
    torch_ops.check(ours.roi_pool.default, (x_BCHW, rois, [2, 3], 0.5))


def test_shapes_are_known_without_data() -> None:
    x_BCHW, rois = scene(15)
    torch_ops.shapes_agree(lambda x, r: roi_align(x, r, 2), x_BCHW, rois)
    torch_ops.shapes_agree(lambda x, r: roi_pool(x, r, 2), x_BCHW, rois)
