"""Networks as ONNX files, and what a detector's file finds in ONNX Runtime.

A detector's file is all of it: from the pixels of a picture to boxes that no better one covers.

Shape legend: H height, W width, 3 RGB, R boxes that were proposed.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dlplatform.errors import EnvironmentMissing, UsageError
from dlplatform.task import Export, Models
from kernels.vision import exported
from trainers.blocks.pixels import normalised
from trainers.data.instances import Found
from trainers.data.scenes import Bytes

if TYPE_CHECKING:
    from trainers.blocks.detector import Detector

NAMES = tuple(name.rpartition("_")[0] for name in Found._fields)
"""Of a detector's outputs: boxes, labels, scores, and masks, joints, states where it has them."""


class Finding(nn.Module):
    """A detector as a function of one picture."""

    def __init__(self, task: Detector, models: Models) -> None:
        """Take the networks of a task."""
        super().__init__()
        self.task, self.nets = task, nn.ModuleDict(models)

    def forward(self, picture_HW3: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
        """Return what is found in a uint8 picture, of what there is to find."""
        return tuple(value for value in self.found(picture_HW3, *boxes) if value is not None)

    def found(self, picture_HW3: Tensor, *boxes: Tensor) -> Found:
        """Return what is found in a uint8 picture of the task's size; among boxes, if it asks."""
        models: Models = dict(self.nets.items())
        return self.task.found_among(models, normalised(picture_HW3[None]), *boxes)

    def export(self) -> Export:
        """Return it with examples of what goes in, and the names of what comes out."""
        inputs = self.task.takes()
        with torch.no_grad():
            found = self.found(*inputs.values())
        outputs = [name for name, value in zip(NAMES, found, strict=True) if value is not None]
        return Export(self, inputs, tuple(outputs), rows=("proposals",))


def write(export: Export, path: Path) -> None:
    """Write an ONNX file that ONNX Runtime can run; one that is there is replaced.

    Raises:
        EnvironmentMissing: there is no package onnx.
        UsageError: the network does what ONNX has no words for.
    """
    if find_spec("onnx") is None:
        raise missing("onnx")
    exported.register()
    many = {name: {0: "rows"} for name in export.rows if name in export.inputs}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Values that a trace keeps, such as the picture's size, are meant to be kept.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                export.net.eval(), tuple(export.inputs.values()), str(path), dynamic_axes=many,
                input_names=list(export.inputs), output_names=list(export.outputs),
                opset_version=exported.OPSET, dynamo=False,
            )  # fmt: skip
    except (RuntimeError, TypeError, ValueError) as error:
        name, why = type(export.net).__name__, str(error).partition("\n")[0]
        raise UsageError(
            f"a {name} cannot be an ONNX file ({why}) - "
            f"allowed: what torch's exporter knows in opset {exported.OPSET} - do: export another"
        ) from error


def missing(package: str) -> EnvironmentMissing:
    """Return the error of a package that ONNX files need."""
    return EnvironmentMissing(
        f"there is no {package} - allowed: any newer version - do: pip install dlplatform[onnx]"
    )


class Runtime:
    """A detector's file in ONNX Runtime."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Open a file that ``write`` made; raises EnvironmentMissing without ONNX Runtime."""
        try:
            import onnxruntime
        except ImportError as error:
            raise missing("onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]

    def found(self, picture_HW3: Bytes, *boxes_R4: np.ndarray[Any, Any]) -> Found:
        """Return what is found in a picture of the size that the file is for."""
        given = dict(zip(self.inputs, (picture_HW3, *boxes_R4), strict=True))
        answers = dict(zip(self.outputs, self.session.run(None, given), strict=True))
        values = {name: torch.from_numpy(answer) for name, answer in answers.items()}
        return Found(*(values.get(name) for name in NAMES))  # type: ignore[arg-type]
