"""The vision operators in ONNX: what they become when a network that calls them is exported.

torch's exporter knows them after ``register``; the files need opset 16, for RoiAlign.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from kernels.vision.operators import SPACE

OPSET = 16
LOWEST = torch.finfo(torch.float32).min


@cache
def register() -> None:
    """Tell torch's exporter to ONNX what reads regions and suppresses boxes."""
    from torch import onnx

    of_values = onnx.symbolic_helper.parse_args
    operators: dict[str, Any] = {
        "roi_align": of_values("v", "v", "is", "f", "i", "b")(_roi_align),
        "roi_pool": of_values("v", "v", "is", "f")(_roi_pool),
        "nms": of_values("v", "v", "f")(_nms),
        "batched_nms": of_values("v", "v", "v", "f")(_batched_nms),
    }
    for name, function in operators.items():
        onnx.register_custom_op_symbolic(f"{SPACE}::{name}", function, OPSET)  # type: ignore[attr-defined]


def _constant(g: Any, value: Any, dtype: torch.dtype = torch.int64) -> Any:
    return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))


def _roi_align(
    g: Any, x: Any, rois: Any, size: list[int], scale: float, samples: int, aligned: bool
) -> Any:
    number = g.op("Cast", g.op("Gather", rois, _constant(g, 0), axis_i=1), to_i=7)  # int64
    boxes = g.op("Gather", rois, _constant(g, [1, 2, 3, 4]), axis_i=1)
    return g.op(
        "RoiAlign", x, boxes, number,
        output_height_i=size[0], output_width_i=size[1], sampling_ratio_i=samples,
        spatial_scale_f=scale, mode_s="avg",
        coordinate_transformation_mode_s="half_pixel" if aligned else "output_half_pixel",
    )  # fmt: skip


def _roi_pool(g: Any, x: Any, rois: Any, size: list[int], scale: float) -> Any:
    return g.op("MaxRoiPool", x, rois, pooled_shape_i=size, spatial_scale_f=scale)


def _nms(g: Any, boxes: Any, scores: Any, iou: float) -> Any:
    every = g.op("Unsqueeze", scores, _constant(g, [0, 1]))
    return _kept(g, boxes, every, iou)


def _batched_nms(g: Any, boxes: Any, scores: Any, classes: Any, iou: float) -> Any:
    """Give each class a row of scores, and each row what it keeps; then sort what all keep."""
    zero, one = _constant(g, 0), _constant(g, 1)
    seen = g.op("Concat", classes, _constant(g, [0]), axis_i=0)
    count = g.op("Add", g.op("ReduceMax", seen, keepdims_i=0), one)
    number = g.op("Unsqueeze", g.op("Range", zero, count, one), _constant(g, [1]))
    own = g.op("Equal", number, g.op("Unsqueeze", classes, _constant(g, [0])))
    lowest = _constant(g, LOWEST, torch.float32)
    rows = g.op("Unsqueeze", g.op("Where", own, scores, lowest), _constant(g, [0]))
    kept = _kept(g, boxes, rows, iou, lowest)
    # Of equal scores the first box is the better one, of whatever class.
    kept = g.op("TopK", kept, g.op("Shape", kept), largest_i=0, outputs=2)[0]
    best = g.op("TopK", g.op("Gather", scores, kept), g.op("Shape", kept), outputs=2)[1]
    return g.op("Gather", kept, best)


def _kept(g: Any, boxes: Any, rows: Any, iou: float, *above: Any) -> Any:
    most = _constant(g, torch.iinfo(torch.int64).max)
    limit = _constant(g, iou, torch.float32)
    boxes = g.op("Unsqueeze", boxes, _constant(g, [0]))
    chosen = g.op("NonMaxSuppression", boxes, rows, most, limit, *above)
    return g.op("Gather", chosen, _constant(g, 2), axis_i=1)
