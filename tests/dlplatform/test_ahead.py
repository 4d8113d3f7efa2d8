"""Reading the next minibatch while one is trained: the same training, beside it, and its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from runs import alone, equal, weights, well
from tinyjobs import at, run, settings
from tinytask import Pair, Points, points, recorded
from torch import Tensor

from dlplatform.errors import UsageError
from dlplatform.memorybox.process import Boxes
from dlplatform.seeds import derive
from dlplatform.task import Models, task
from dlplatform.trainer import Trainer
from dlplatform.world import World

ON, OFF = {"ahead": "1"}, {"ahead": "0"}
PATIENCE_S = 20.0


@task("test/watched")
@dataclass
class Watched(Points):
    """Trains a minibatch only once the next one is being read; some cannot be read."""

    refused: int = -1
    last: int = -1
    """The last minibatch that waits for the one after it."""
    noisy: bool = False
    """Draw from the generator of the networks."""

    def batch(self, split: str, number: int) -> Pair:
        self._event(number).set()
        if number == self.refused:
            raise UsageError(f"picture {number} is broken - allowed: whole ones - do: mend it")
        xy, labels = points(derive(self.seed, split, number))
        return xy + torch.rand(len(xy), 1) if self.noisy else xy, labels

    def loss(self, models: Models, batch: Pair) -> Tensor:
        if self._at < self.last:
            assert self._event(self._at + 1).wait(PATIENCE_S), "nobody reads the next one"
        self._at += 1
        self._now = self._at
        return super().loss(models, batch)

    def __post_init__(self) -> None:
        self._at = 0
        self._begun: dict[int, threading.Event] = {}

    def _event(self, number: int) -> threading.Event:
        return self._begun.setdefault(number, threading.Event())


def readers() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("ahead")]


MADE: list[Trainer] = []


@pytest.fixture(autouse=True)
def _no_reader_is_left() -> Iterator[None]:
    """End the threads of trainers that a test has not run to their end."""
    yield
    while MADE:
        MADE.pop().ahead.pool.shutdown()


def trainer(folder: Path, mode: dict[str, str], **more: object) -> Trainer:
    options = {"minibatches": 20, **mode}
    MADE.append(Trainer(settings(folder, "test/watched", run=options, **more), World()))
    return MADE[-1]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_worker_alone_trains_the_same(accumulate: int, tmp_path: Path) -> None:
    for name, mode in (("without", OFF), ("with", ON)):
        alone(tmp_path / name, 20, dropout=0.5, run={**mode, "accumulate": accumulate})
    assert equal(weights(tmp_path / "without"), weights(tmp_path / "with"))


@pytest.mark.parametrize("fields", [{"rule": "ssgd"}, {"task": "test/chain", "rule": "ssgd"}])
def test_two_workers_in_step_train_the_same(
    fields: dict[str, str], tmp_path: Path, boxes: Boxes
) -> None:
    """As two replicas, and as two stages of a network."""
    for name, mode in (("without", OFF), ("with", ON)):
        options = {"minibatches": 14, "eval_every": 14, **mode}
        config = settings(tmp_path / name, cluster=at(boxes), run=options, **fields)
        well(run(config | {"stages": 2 if "task" in fields else 1, "workers": 2}, 2))
    assert equal(weights(tmp_path / "without"), weights(tmp_path / "with"))


def test_two_workers_out_of_step_train_every_number_once(tmp_path: Path, boxes: Boxes) -> None:
    """What they learn depends on who comes first, with or without."""
    config = settings(
        tmp_path, rule="asgd", cluster=at(boxes), record=str(tmp_path), slow_s=0.005,
        run={"minibatches": 40, "eval_every": 40, **ON},
    )  # fmt: skip
    well(run(config, 2))
    assert recorded(tmp_path) == list(range(40))
    assert set(recorded(tmp_path, "begun")) == set(range(40))


def test_whatever_is_claimed_is_what_is_read(tmp_path: Path) -> None:
    """Guesses are right and wrong, numbers come back, and the last has no next one."""
    read = trainer(tmp_path, ON).ahead.read
    before = torch.get_rng_state()
    for number in (0, 1, 2, 5, 7, 8, 9, 4, 4, 3, 19, 19, 18):
        for found, wanted in zip(read(number), points(derive(3, "train", number)), strict=True):
            assert torch.equal(found, wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_next_minibatch_is_read_during_training(tmp_path: Path) -> None:
    trainer(tmp_path, ON, last=19).fit()


def test_a_minibatch_that_cannot_be_read_is_the_same_error(tmp_path: Path) -> None:
    said = []
    for name, mode in (("without", OFF), ("with", ON)):
        with pytest.raises(UsageError) as error:
            trainer(tmp_path / name, mode, refused=7).fit()
        said.append(str(error.value))
        assert not readers()
    assert said[0] == said[1] and said[0].startswith("picture 7 is broken")


def test_a_wrong_guess_that_cannot_be_read_harms_nobody(tmp_path: Path) -> None:
    read = trainer(tmp_path, ON, refused=1).ahead.read
    assert torch.equal(read(0)[0], points(derive(3, "train", 0))[0])
    assert torch.equal(read(2)[0], points(derive(3, "train", 2))[0])


def test_the_thread_ends_with_the_training(tmp_path: Path) -> None:
    worker = trainer(tmp_path, ON)
    worker.ahead.read(0)
    assert readers()
    worker.fit()
    assert not readers()


def test_on_a_cpu_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    worker = trainer(tmp_path, {"device": "cpu"})
    worker.ahead.read(0)
    assert not worker.ahead.on and not readers()


def test_a_task_that_draws_from_the_networks_generator_is_read_in_turn(tmp_path: Path) -> None:
    for name, mode in (("without", OFF), ("with", ON)):
        worker = trainer(tmp_path / name, mode, noisy=True, dropout=0.5)
        worker.fit()
        assert not worker.ahead.on
    assert equal(weights(tmp_path / "without"), weights(tmp_path / "with"))
