"""Checkpoints: atomic, never half-written, complete, and refused when they do not fit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tinytask import network, optimizer
from torch import nn

from dlplatform import checkpoint
from dlplatform.checkpoint import Checkpoint, moments_of, put_moments, put_weights, weights_of
from dlplatform.errors import EnvironmentMissing, PlatformError, UsageError


def saved(position: int, value: float = 1.0, size: int = 8) -> Checkpoint:
    weights = {"net.weight": torch.full((size,), value)}
    return Checkpoint(position, weights, scores={"accuracy": value}, history=[{"minibatch": 1}])


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    one = saved(7)
    one.settings = {"task": {"name": "x/y", "lr": 0.1}}
    one.moments = {"main/0/step": torch.tensor(3.0)}
    one.save(tmp_path)
    other = Checkpoint.load(tmp_path)
    assert (other.position, other.settings, other.scores) == (7, one.settings, one.scores)
    assert torch.equal(other.weights["net.weight"], one.weights["net.weight"])
    assert other.moments["main/0/step"] == 3
    assert checkpoint.exists(tmp_path)


def test_latest_and_best_stay_and_others_go(tmp_path: Path) -> None:
    for position, best in ((1, True), (2, False), (3, False)):
        saved(position).save(tmp_path, best)
    home = tmp_path / "checkpoints"
    assert os.readlink(home / "latest") == "000000003"
    assert os.readlink(home / "best") == "000000001"
    assert {path.name for path in home.iterdir()} == {"latest", "best", "000000003", "000000001"}
    assert Checkpoint.load(tmp_path, "best").position == 1
    assert Checkpoint.load(tmp_path, "000000003").position == 3


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    saved(5).save(tmp_path)
    part = tmp_path / "checkpoints" / ".000000009.part"
    part.mkdir()
    (part / "weights.safetensors").write_bytes(b"half")
    assert Checkpoint.load(tmp_path).position == 5
    saved(9).save(tmp_path)
    assert Checkpoint.load(tmp_path).position == 9
    assert not part.exists()


@pytest.mark.parametrize("step", ["os.replace", "shutil.rmtree", "os.fsync", "save_file", "_point"])
@pytest.mark.parametrize("position", [5, 6])
def test_a_death_while_saving_leaves_the_previous_one(
    step: str, position: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies in each of the steps of a save, also of the same position again."""
    saved(5, 1.0).save(tmp_path)

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(f"dlplatform.checkpoint.{step}", die)
    if step == "shutil.rmtree":  # the tidying up after a death never happens either
        monkeypatch.setattr("dlplatform.checkpoint._point", die)
    with pytest.raises(Killed):
        saved(position, 2.0).save(tmp_path)
    monkeypatch.undo()
    found = Checkpoint.load(tmp_path)
    assert found.position == 5
    assert found.weights["net.weight"][0] == found.scores["accuracy"] == 1.0


class Killed(BaseException):
    pass


def test_the_same_position_again_replaces_it(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        saved(5, value).save(tmp_path, best=value == 1.0)
    assert Checkpoint.load(tmp_path).scores["accuracy"] == 3.0
    assert Checkpoint.load(tmp_path, "best").scores["accuracy"] == 1.0
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("only root mounts a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_keeps_the_previous_one(small_disk: Path) -> None:
    saved(1, size=8_000).save(small_disk)
    with pytest.raises(EnvironmentMissing) as caught:
        saved(2, size=100_000).save(small_disk)
    text = str(caught.value)
    assert "\n" not in text
    assert "No space left" in text and str(small_disk) in text and "do: free space" in text
    assert caught.value.exit_code == 3
    assert Checkpoint.load(small_disk).position == 1
    assert not list(small_disk.rglob("*.part"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(EnvironmentMissing, match="cannot be written: File exists"):
        saved(1).save(tmp_path)


def test_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(UsageError, match="holds no checkpoint - allowed: the folder of a run"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "moments.safetensors"])
def test_a_damaged_file_is_one_line(name: str, tmp_path: Path) -> None:
    saved(1).save(tmp_path)
    file = tmp_path / "checkpoints" / "latest" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(PlatformError) as caught:
        Checkpoint.load(tmp_path)
    assert "is damaged" in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    saved(1).save(tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints" / "latest").iterdir()}
    assert names == {"state.json", "weights.safetensors", "moments.safetensors"}
    assert json.loads((tmp_path / "checkpoints/latest/state.json").read_text())["format"] == 1


def test_tied_weights_are_saved_once_and_come_back(tmp_path: Path) -> None:
    def tied() -> dict[str, nn.Module]:
        one, other = nn.Linear(3, 3), nn.Linear(3, 3)
        other.weight = one.weight
        return {"one": one, "other": other}

    models, fresh = tied(), tied()
    assert set(weights_of(models)) == {"one.weight", "one.bias", "other.bias"}
    Checkpoint(1, weights_of(models)).save(tmp_path)
    put_weights(fresh, Checkpoint.load(tmp_path).weights)
    assert torch.equal(fresh["other"].weight, models["one"].weight)  # type: ignore[arg-type]
    assert fresh["other"].weight is fresh["one"].weight


@pytest.mark.parametrize("name", ["sgd", "adam", "plain"])
def test_an_optimizer_comes_back(name: str, tmp_path: Path) -> None:
    models, optimizers = [network(), network()], []
    for model in models:
        optimizers.append(optimizer(name, model.parameters()))
    for _ in range(3):
        step(models[0], optimizers[0])
    Checkpoint(3, weights_of({"net": models[0]}), moments_of({"main": optimizers[0]})).save(
        tmp_path
    )
    found = Checkpoint.load(tmp_path)
    put_weights({"net": models[1]}, found.weights)
    put_moments({"main": optimizers[1]}, found.moments)
    for model, one in zip(models, optimizers, strict=True):
        step(model, one)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 2)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"net.0.weight": torch.ones(2, 2)}, r"checkpoint has \[2, 2\] for net\.0\.weight"),
        ({}, r"checkpoint has nothing for net\.0\.weight - allowed: \[16, 2\]"),
    ],
)
def test_weights_of_another_network_are_refused(weights: dict[str, Any], words: str) -> None:
    model = network()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UsageError, match=words):
        put_weights({"net": model}, weights)
    assert all(map(torch.equal, model.parameters(), before))
