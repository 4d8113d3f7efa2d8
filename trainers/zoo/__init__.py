"""Well-known networks on data that needs no download."""

from __future__ import annotations

from trainers.zoo import (
    dcgan,
    digits,
    dqn,
    fast_rcnn,
    faster_rcnn,
    fcn,
    inception,
    mask_rcnn,
    nic,
    rcnn,
    refine_rcnn,
    resnet,
    segnet,
    shapes,
    style,
    textgen,
    vgg,
)

__all__ = [
    "dcgan",
    "digits",
    "dqn",
    "fast_rcnn",
    "faster_rcnn",
    "fcn",
    "inception",
    "mask_rcnn",
    "nic",
    "rcnn",
    "refine_rcnn",
    "resnet",
    "segnet",
    "shapes",
    "style",
    "textgen",
    "vgg",
]
