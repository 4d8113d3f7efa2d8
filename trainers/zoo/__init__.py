"""Well-known networks on data that needs no download."""

from __future__ import annotations

from trainers.zoo import (
    dcgan,
    digits,
    dqn,
    fcn,
    inception,
    nic,
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
    "fcn",
    "inception",
    "nic",
    "resnet",
    "segnet",
    "shapes",
    "style",
    "textgen",
    "vgg",
]
