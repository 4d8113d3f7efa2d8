"""The vision operators in an exported network: ONNX Runtime answers as they do."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from kernels.vision import batched_nms, nms, roi_align, roi_pool
from kernels.vision.exported import OPSET, register


class Everything(nn.Module):
    def forward(
        self, x_BCHW: Tensor, rois_R5: Tensor, scores_R: Tensor, classes_R: Tensor
    ) -> tuple[Tensor, ...]:
        boxes_R4 = rois_R5[:, 1:]
        return (
            nms(boxes_R4, scores_R, 0.3),
            batched_nms(boxes_R4, scores_R, classes_R, 0.3),
            roi_align(x_BCHW, rois_R5, (3, 2), 0.5, 2),
            roi_align(x_BCHW, rois_R5, 2, 0.5, 0, aligned=False),
            roi_pool(x_BCHW, rois_R5, (2, 3), 0.5),
        )


def scene(regions: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(regions)
    x_BCHW = torch.randn(2, 3, 10, 12, generator=draw)
    low_R2 = torch.rand(regions, 2, generator=draw) * 10
    size_R2 = torch.rand(regions, 2, generator=draw) * 9 + 1
    picture_R1 = torch.randint(2, (regions, 1), generator=draw).float()
    rois_R5 = torch.cat([picture_R1, low_R2, low_R2 + size_R2], 1)
    # Some scores are equal: the first box is the better one then.
    scores_R = torch.randint(regions // 2 + 1, (regions,), generator=draw) / 10 - 1
    return x_BCHW, rois_R5, scores_R, torch.randint(4, (regions,), generator=draw) * 3


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    register()
    path, names = tmp_path_factory.mktemp("onnx") / "all.onnx", ["x", "rois", "scores", "classes"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Everything(), scene(5), str(path), input_names=names, opset_version=OPSET,
            dynamic_axes={name: {0: "rows"} for name in names[1:]}, dynamo=False,
        )  # fmt: skip
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("regions", [60, 1, 0])
def test_a_network_answers_the_same(session: onnxruntime.InferenceSession, regions: int) -> None:
    given = scene(regions)
    names = [one.name for one in session.get_inputs()]
    answers = session.run(None, {n: v.numpy() for n, v in zip(names, given, strict=True)})
    for answer, expected in zip(answers, Everything()(*given), strict=True):
        assert answer.dtype == expected.numpy().dtype
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-4, atol=1e-5)
