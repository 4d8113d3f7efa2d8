"""Suppression of boxes: C against the definition, against ONNX Runtime, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import node

from kernels.vision import batched_nms, native, nms, reference, soft_nms


def scene(seed: int, n: int, double: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crowded boxes and scores, some of them equal, some boxes empty or inside out."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (n, 2)), rng.uniform(-2, 40, (n, 2))
    boxes = np.concatenate([corner, corner + size], 1).round(int(rng.integers(0, 3)))
    scores = rng.uniform(0, 1, n).round(int(rng.integers(1, 4)))
    dtype = torch.float64 if double else torch.float32
    return torch.tensor(boxes, dtype=dtype).reshape(n, 4), torch.tensor(scores, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(0, 70), iou=st.sampled_from([0.0, 0.3, 0.5, 1.0])
)
def test_c_keeps_what_the_definition_keeps(seed: int, n: int, iou: float) -> None:
    boxes, scores = scene(seed, n)
    classes = torch.arange(n) * 7919 % 3 - 1
    assert nms(boxes, scores, iou).equal(reference.batched_nms(boxes, scores, None, iou))
    kept = batched_nms(boxes, scores, classes, iou)
    assert kept.equal(reference.batched_nms(boxes, scores, classes, iou))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 40), sigma=st.sampled_from([0.0, 0.5]))
def test_c_lowers_scores_as_the_definition(seed: int, n: int, sigma: float) -> None:
    boxes, scores = scene(seed, n)
    scores += torch.arange(n) * 1e-5  # no ties: exponentials differ in the last bit
    ours = native.soft_nms(boxes, scores, 0.3, sigma, 0.01)
    kept, worth = reference.soft_nms(boxes, scores, 0.3, sigma, 0.01)
    assert ours[0].equal(kept)
    torch.testing.assert_close(ours[1], worth)


@pytest.mark.parametrize("iou", [0.2, 0.5, 0.7])
def test_onnx_runtime_keeps_the_same_boxes(iou: float) -> None:
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 60, (80, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (80, 2))], 1).astype(np.float32)
    scores = rng.permutation(80).astype(np.float32) / 80
    inputs = [boxes[None], scores[None, None], np.int64(80), np.float32(iou), np.float32(-1)]
    theirs = node("NonMaxSuppression", inputs, "int64", opset=11)
    ours = nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou)
    assert ours.tolist() == theirs[:, 2].tolist()


def test_classes_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 4)
    scores, classes = torch.tensor([0.1, 0.9, 0.8, 0.2]), torch.tensor([0, 1, 0, 1])
    assert nms(boxes, scores, 0.5).tolist() == [1]
    assert batched_nms(boxes, scores, classes, 0.5).tolist() == [1, 2]


def test_soft_suppression_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.8, 0.6])
    kept, worth = soft_nms(boxes, scores, kind="linear", iou=0.4)
    assert kept.tolist() == [0, 2, 1]
    assert worth.tolist() == pytest.approx([0.9, 0.6, 0.8 * 0.5])
    kept, worth = soft_nms(boxes, scores, sigma=0.5)
    assert worth.tolist() == pytest.approx([0.9, 0.6, 0.8 * np.exp(-0.25 / 0.5)])
    assert soft_nms(boxes, scores, sigma=0.5, least=0.5)[0].tolist() == [0, 2]


def test_double_precision_and_half_precision_work() -> None:
    boxes, scores = scene(5, 30, double=True)
    expected = nms(boxes, scores, 0.5)
    assert expected.equal(nms(boxes.float(), scores.float(), 0.5))
    kept, worth = soft_nms(boxes.half(), scores.half())
    assert len(kept) == len(worth) and worth.dtype == torch.float16


def test_nothing_in_nothing_out() -> None:
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    assert nms(boxes, scores, 0.5).shape == (0,)
    assert batched_nms(boxes, scores, torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)
    assert [len(one) for one in soft_nms(boxes, scores)] == [0, 0]


def test_scores_that_are_no_numbers_are_left_out_of_soft_suppression() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6]])
    assert soft_nms(boxes, torch.tensor([torch.nan, 0.5]))[0].tolist() == [1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda b, s: nms(b[:, :3], s, 0.5), r"boxes \[3, 3\].*allowed.*do:"),
        (lambda b, s: nms(b, s[:2], 0.5), r"scores \[2\].*allowed: \[3\].*do:"),
        (lambda b, s: nms(b, s, 1.5), "iou 1.5 - allowed: 0 to 1 - do:"),
        (lambda b, s: batched_nms(b, s, s, 0.5), "classes .* of torch.float32.*allowed.*do:"),
        (lambda b, s: soft_nms(b, s, kind="hard"), "kind hard - allowed: gaussian, linear - do:"),
        (lambda b, s: soft_nms(b, s, sigma=0.0), "sigma 0.0.*allowed.*do:"),
    ],
)
def test_wrong_arguments_end_in_one_line(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        call(torch.zeros(3, 4), torch.zeros(3))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_torch_accepts_the_operators() -> None:
    boxes, scores = scene(2, 12)
    ours = torch.ops.dlplatform
    classes = torch.arange(12) % 2
    torch_ops.check(ours.nms.default, (boxes, scores, 0.5), symbolic=False)
    torch_ops.check(ours.batched_nms.default, (boxes, scores, classes, 0.5), symbolic=False)
    torch_ops.check(ours.soft_nms.default, (boxes, scores, 0.3, 0.5, 0.01), symbolic=False)
