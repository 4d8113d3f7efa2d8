"""Weights a user has for a network: a safetensors file or a run, read or refused in one line."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dlplatform.checkpoint import Checkpoint, weights_of
from dlplatform.errors import UsageError
from dlplatform.task import Models


def take_fitting(models: Models, folder: str, setting: str) -> list[str]:
    """Take the weights of a finished run wherever name and shape are the same.

    So a detector learns other classes, or gets more heads. Returns the names of what stays new.

    Raises:
        UsageError: when the folder holds no checkpoint, or one of quite another network.
    """
    saved, own = Checkpoint.load(Path(folder)).weights, weights_of(models)
    fitting = [name for name in own if name in saved and saved[name].shape == own[name].shape]
    if len(fitting) < len(own) / 2:
        raise UsageError(
            f"{setting}={folder} fits {len(fitting)} of {len(own)} weights - allowed: a run of the "
            "same backbone and width - do: set those as that run had them"
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(saved[name])
    return sorted(set(own) - set(fitting))


def read_weights(net: nn.Module, path: Path, setting: str) -> None:
    """Put the weights of a safetensors file into a network; values it does not name stay.

    Raises:
        UsageError: for a file that cannot be read, or has none of, or other shapes than, the net.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{setting}={path} cannot be read ({error}) - allowed: a safetensors file - do: "
            "save the weights with safetensors.torch.save_file"
        ) from error
    own = net.state_dict()
    shared = [name for name in own if name in found]
    if not shared:
        raise UsageError(
            f"{setting}={path} has no weights of this network - allowed: names such as "
            f"{next(iter(own))} - do: rename them"
        )
    for name in shared:
        if found[name].shape != own[name].shape:
            raise UsageError(
                f"{setting}={path} has {name} of shape {tuple(found[name].shape)} - allowed: "
                f"{tuple(own[name].shape)} - do: change the size of the network"
            )
    net.load_state_dict({name: found[name] for name in shared}, strict=False)
