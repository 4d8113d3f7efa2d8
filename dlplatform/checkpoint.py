"""Checkpoints: safetensors and json, never pickle, never half-written.

A checkpoint is a folder ``checkpoints/<minibatch>`` in the run's folder; ``latest`` and ``best``
are links to one. It is written under another name, synced, then renamed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlplatform.errors import EnvironmentMissing, UsageError
from dlplatform.task import Task, find_task

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from dlplatform.flat import FlatGroup
    from dlplatform.rules.rule import Rule
    from dlplatform.task import Models

    Groups = dict[str, tuple[FlatGroup, Rule]]

FORMAT = 1
KEPT = "kept.safetensors"


@dataclass
class Checkpoint:
    """Everything a job needs to go on: weights, optimizer moments, position, scores."""

    position: int
    weights: dict[str, Tensor]
    """``net.parameter`` to tensor, buffers included."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """``group/parameter/state`` to tensor."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The job's configuration."""
    scores: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What the task keeps beside its networks."""

    def save(self, folder: Path, best: bool = False) -> None:
        """Write atomically under ``folder/checkpoints`` and move ``latest`` (and ``best``)."""
        home = folder / "checkpoints"
        name = f"{self.position:09d}"
        try:
            home.mkdir(parents=True, exist_ok=True)
            name = _unused(home, name)
            self._write(home / f".{name}.part", home / name)
            for link in ("latest", "best") if best else ("latest",):
                _point(home / link, name)
            _prune(home)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise EnvironmentMissing(
                f"checkpoint {home / name} cannot be written: {reason} - allowed: a "
                "folder with room - do: free space, or choose another run.dir; the previous "
                "checkpoint is untouched"
            ) from None

    def _write(self, part: Path, final: Path) -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            _save_tensors(self.weights, part / "weights.safetensors")
            _save_tensors(self.moments, part / "moments.safetensors")
            if self.kept:
                _save_tensors(self.kept, part / KEPT)
            state = {
                "format": FORMAT,
                "position": self.position,
                "scores": self.scores,
                "history": self.history,
                "settings": self.settings,
            }
            (part / "state.json").write_text(json.dumps(state, indent=1))
            for file in part.iterdir():
                _sync(file)
            _sync(part)
            os.replace(part, final)
            _sync(final.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @staticmethod
    def load(folder: Path, which: str = "latest") -> Checkpoint:
        """Read a checkpoint of a run's folder: ``latest``, ``best`` or a number."""
        home = folder / "checkpoints" / which
        try:
            state = json.loads((home / "state.json").read_text())
            weights = load_file(home / "weights.safetensors")
            moments = load_file(home / "moments.safetensors")
            kept = load_file(home / KEPT) if (home / KEPT).exists() else {}
        except FileNotFoundError:
            raise UsageError(
                f"{home} holds no checkpoint - allowed: the folder of a run - do: give the "
                "folder that dlp train printed"
            ) from None
        except (OSError, ValueError, SafetensorError) as error:
            raise UsageError(
                f"checkpoint {home} is damaged: {error} - allowed: one as it was written - do: try "
                "which=best, or another run"
            ) from None
        keys = ("position", "scores", "history", "settings")
        known = {key: state[key] for key in keys}
        return Checkpoint(weights=weights, moments=moments, kept=kept, **known)


def exists(folder: Path) -> bool:
    """Tell whether a run's folder holds a checkpoint to go on from."""
    return (folder / "checkpoints" / "latest" / "state.json").exists()


def _unused(home: Path, name: str) -> str:
    """Return a name that no checkpoint has: a link's target is never written over."""
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(1)))
    return next(one for one in names if not (home / one).exists())


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point(link: Path, name: str) -> None:
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    os.replace(fresh, link)


def _prune(home: Path) -> None:
    kept = {os.readlink(link) for link in (home / "latest", home / "best") if link.is_symlink()}
    for old in home.iterdir():
        if old.is_dir() and not old.is_symlink() and old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)


def weights_of(models: Models) -> dict[str, Tensor]:
    """Return all weights and buffers of the networks, by ``net.name`` (tied ones once)."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for net, model in models.items():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[f"{net}.{name}"] = tensor
    return tensors


def put_weights(models: Models, weights: dict[str, Tensor]) -> None:
    """Copy saved weights into networks of the same shape."""
    with torch.no_grad():
        for name, tensor in weights_of(models).items():
            if name not in weights or weights[name].shape != tensor.shape:
                saved = list(weights[name].shape) if name in weights else "nothing"
                raise UsageError(
                    f"checkpoint has {saved} for {name} - allowed: {list(tensor.shape)} - do: "
                    "use the task settings the checkpoint was trained with"
                )
            tensor.copy_(weights[name])


def moments_of(optimizers: dict[str, Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' states as tensors by ``group/parameter/state``."""
    moments: dict[str, Tensor] = {}
    for group, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                moments[f"{group}/{index}/{key}"] = torch.as_tensor(value)
    return moments


def put_moments(optimizers: dict[str, Optimizer], moments: dict[str, Tensor]) -> None:
    """Give the optimizers their saved states back."""
    for group, optimizer in optimizers.items():
        whole = optimizer.state_dict()
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in moments.items():
            home, index, key = name.rsplit("/", 2)
            if home == group and index not in ("raw", "rule"):
                states.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**whole, "state": states})
        for p, state in optimizer.state.items():
            for key, value in state.items():
                if value.shape == p.shape and value.stride() != p.stride():
                    state[key] = torch.empty_like(p).copy_(value)


def states_of(groups: Groups) -> dict[str, Tensor]:
    """Return what the rules keep in the boxes as tensors by ``group/rule/name``."""
    found: dict[str, Tensor] = {}
    for group, (flat, rule) in groups.items():
        for name, buffer in rule.states().items():
            state, found[f"{group}/rule/{name}"] = torch.zeros(2, flat.length)
            buffer.read(state.data_ptr())
            _copy(flat.views(state), flat.views(found[f"{group}/rule/{name}"], plain=True))
    return found


def put_states(groups: Groups, saved: dict[str, Tensor]) -> None:
    """Put back what the rules keep in the boxes; one worker does it for all."""
    for group, (flat, rule) in groups.items():
        for name, buffer in rule.states().items():
            state = saved.get(f"{group}/rule/{name}")
            if state is not None and state.numel() == flat.length:
                mine = torch.zeros(flat.length)
                _copy(flat.views(state, plain=True), flat.views(mine))
                buffer.write(mine.data_ptr())


def _copy(these: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    for tensor, copy in zip(these, into, strict=True):
        copy.copy_(tensor)


def make_task(settings: dict[str, Any], minibatches: int | None = None) -> Task:
    """Build the task of a configuration: ``{"name": ..., fields ...}``.

    Args:
        settings: the task's part of it.
        minibatches: how many the run has, where that is not what the task says of itself; it may
            have stages that begin after a share of them.
    """
    cls = find_task(settings["name"])
    given = {key: value for key, value in settings.items() if key != "name"}
    if minibatches and "minibatches" in getattr(cls, "__dataclass_fields__", {}):
        given["minibatches"] = minibatches
    return cls(**given)


def load_models(folder: str | Path, which: str = "latest") -> tuple[Task, Models]:
    """Return the task and the trained networks (eval mode) of a run's folder."""
    saved = Checkpoint.load(Path(folder), which)
    task = make_task(saved.settings["task"])
    models = task.models()
    put_weights(models, saved.weights)
    for model in models.values():
        model.eval()
    return task, models
