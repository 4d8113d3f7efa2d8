"""Weights to start from: those of a finished run, or an encoder's from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dlplatform.checkpoint import Checkpoint, put_weights
from dlplatform.errors import UsageError
from dlplatform.task import Models

COUNTER = "num_batches_tracked"


def continue_run(models: Models, folder: str) -> None:
    """Take the weights that a finished run has reached; its optimizer stays behind.

    Raises:
        UsageError: when the folder holds no checkpoint, or one of another network.
    """
    put_weights(models, Checkpoint.load(Path(folder)).weights)


def load_encoder(encoder: nn.Module, path: str) -> None:
    """Put the weights of a file into an encoder: by their names, else by their order.

    Files name layers as their authors did; where the layers come in the same order with the same
    shapes (torchvision's ResNet-50), that is enough. What follows in the file, such as a
    classifier, is left out.

    Args:
        encoder: to fill.
        path: of a .safetensors file, or one of torch.save that holds a state dictionary.

    Raises:
        UsageError: when the file cannot be read, or a shape does not fit.
    """
    own, named = (
        {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
        for state in (encoder.state_dict(), _read(path))
    )
    found = [named[name] for name in own] if set(own) <= set(named) else list(named.values())
    if len(found) < len(own):
        raise UsageError(
            f"task.encoder={path} holds {len(found)} tensors - allowed: at least {len(own)}, those "
            "of the encoder - do: give weights of the same network"
        )
    for (name, tensor), given in zip(own.items(), found, strict=False):
        if tensor.shape != given.shape:
            raise UsageError(
                f"task.encoder={path} has {list(given.shape)} where {name} is - allowed: "
                f"{list(tensor.shape)} - do: give weights of the same network"
            )
        tensor.copy_(given)


def _read(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler that reads no pickle may stumble over anything
        said = str(error).partition("\n")[0] or type(error).__name__
        raise _unreadable(path, said) from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise _unreadable(path, "no state dictionary")
    return found


def _unreadable(path: str, why: str) -> UsageError:
    return UsageError(
        f"task.encoder={path} cannot be read ({why}) - allowed: a .safetensors file, or a state "
        "dictionary written by torch.save - do: check the path"
    )
