"""Files of whole detectors: ONNX Runtime finds what torch finds, to the last region."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from detectors import begun
from torch import Tensor

from dlplatform.errors import EnvironmentMissing
from dlplatform.task import Models, find_task
from trainers.blocks.detector import Detector
from trainers.blocks.exported import Finding, Runtime, write
from trainers.blocks.pixels import normalised
from trainers.blocks.searched import Searched
from trainers.data.instances import Found
from trainers.synth.instance_views import fitted

SURE = ("logits.weight", "objectness.weight", "score.weight")
FAR = ("distances.weight", "deltas.weight", "move.weight", "marks.weight")
TWO: dict[str, Any] = {"hidden": 16, "most": 500, "iou": 0.5}
ONE: dict[str, Any] = {"side": 64, "width": 16, "towers": 1, "pictures": 6, "most": 500}
SMALL: dict[str, dict[str, Any]] = {
    "zoo/rcnn": {**TWO, "proposed": 40},
    "zoo/fast_rcnn": {**TWO, "proposed": 40, "least": 0.3},
    "zoo/faster_rcnn": {**TWO, "inner": 16},
    "zoo/mask_rcnn": {**TWO, "inner": 16, "masks": 8, "convs": 1, "least": 0.3},
    "zoo/refine_rcnn": {**TWO, "inner": 16},
    "human/instances": {**ONE, "side": 96, "levels": 4, "classes": 3, "most": 1000},
    "human/pose": ONE,
    "human/state": ONE,
    "face/detection": ONE,
}
NAMING = ("score.bias", "svm.linear.bias", "head.logits.bias")
"""How sure every class is to begin with."""
QUICK = "human/state"
"""Has all there is: boxes, masks, joints, states."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def untrained(task: Detector) -> Models:
    """Return networks that say very different things of different places."""
    models = begun(task)
    with torch.no_grad():
        for name, value in (pair for net in models.values() for pair in net.named_parameters()):
            value *= 50.0 if name.endswith(SURE) else 10.0 if name.endswith(FAR) else 1.0
            if name.startswith("linear"):
                value += torch.randn_like(value)
            if name.endswith("logits.bias"):
                value.zero_()
    return models


def written_asleep(task: Detector, models: Models, path: Path) -> Finding:
    """Write a file whose example holds nothing, as blank pictures do after training; then wake it.

    Asleep, no class is ever sure.
    """
    finding = Finding(task, models)
    awake = {name: value for name, value in finding.named_parameters() if name.endswith(NAMING)}
    kinds = len(task.examples("test").kinds.names)
    with torch.no_grad():
        for value in awake.values():
            value[:kinds] -= 100
        assert not len(finding.found(*task.takes().values()).labels_N)
        export = task.export(models)
        write(export, path)
        for value in awake.values():
            value[:kinds] += 100
    file = onnx.load(path)
    for weights in file.graph.initializer:
        if weights.name in awake:
            value = awake.pop(weights.name).detach().numpy()
            weights.CopyFrom(onnx.numpy_helper.from_array(value, weights.name))
    assert not awake
    onnx.save(file, path)
    runtime = Runtime(path)
    assert runtime.inputs == list(export.inputs) and runtime.outputs == list(export.outputs)
    return finding


def views(task: Detector) -> list[tuple[Tensor, ...]]:
    """Return what files are given: two pictures, one of them darker below and with fewer boxes."""
    made: list[tuple[Tensor, ...]] = []
    for number in range(2):
        image_HW3 = task.examples("test")[number][0]
        image_HW3 = fitted(image_HW3, task.side).image(image_HW3)
        if number:
            image_HW3[task.side // 3 :] //= 4
        picture_HW3 = torch.from_numpy(image_HW3)
        made.append((picture_HW3,))
        if isinstance(task, Searched):
            boxes_R4 = task.candidates({}, normalised(picture_HW3[None]))[0]
            made[-1] += (boxes_R4[number * len(boxes_R4) // 2 :],)
    return made


def alike(found: Found, expected: Found) -> None:
    """Hold all that is said of every region against each other."""
    for name, one, other in zip(Found._fields, found, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is None or other is None:
            continue
        assert one.shape == other.shape and one.dtype == other.dtype, name
        if one.dtype == torch.bool:  # a chance of a half falls to either side
            assert float((one != other).float().mean()) < 1e-3, name
        else:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != QUICK)) for name in SMALL]
)
def test_onnx_runtime_finds_what_torch_finds(name: str, tmp_path: Path) -> None:
    cls = find_task(name)
    assert issubclass(cls, Detector)
    task = cls(**SMALL[name])
    finding = written_asleep(task, untrained(task), tmp_path / "all.onnx")
    runtime = Runtime(tmp_path / "all.onnx")
    counts = set()
    for given in views(task):
        with torch.no_grad():
            expected = finding.found(*given)
        alike(runtime.found(*(value.numpy() for value in given)), expected)
        counts.add(len(expected.labels_N))
    assert len(counts) == 2 and min(counts) > 2, "as many as there are, not as in the example"


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentMissing, match=r"no onnxruntime - .* dlplatform\[onnx\]"):
        Runtime(tmp_path / "all.onnx")
