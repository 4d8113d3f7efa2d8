"""A run in this process, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tinyjobs import Ended, settings
from torch import Tensor

from dlplatform.trainer import Trainer
from dlplatform.world import World


def alone(folder: Path, minibatches: int = 40, **more: Any) -> float:
    options = {"minibatches": minibatches, **more.pop("run", {})}
    return Trainer(settings(folder, run=options, **more), World()).fit()


def weights(folder: Path, which: str = "latest") -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / which / "weights.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "checkpoints/latest/state.json").read_text())
    return loaded


def well(ended: list[Ended]) -> None:
    assert [one.code for one in ended] == [0] * len(ended), ended
