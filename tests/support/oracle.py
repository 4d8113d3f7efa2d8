"""One ONNX operator on its own, run by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def node(
    name: str, inputs: list[Any], kind: str = "float32", opset: int = 19, **attributes: Any
) -> np.ndarray:  # fmt: skip
    """Return the result of an operator."""
    arrays = {f"i{k}": np.asarray(one) for k, one in enumerate(inputs)}
    graph = helper.make_graph(
        [helper.make_node(name, list(arrays), ["out"], **attributes)], name,
        [helper.make_tensor_value_info(k, KINDS[a.dtype.name], a.shape) for k, a in arrays.items()],
        [helper.make_tensor_value_info("out", KINDS[kind], None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, arrays)[0])
