"""zoo/dqn: minibatches by number, a worker's own games that are kept, and play that improves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlplatform.errors import UsageError
from dlplatform.task import Models
from trainers.blocks.qlearning import greedy, play, values
from trainers.nets.convnet import parameter_count
from trainers.pictures.episodes import save_gif
from trainers.synth.games.chain import LENGTH, best_values
from trainers.zoo.dqn import DQN


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(**fields: object) -> DQN:
    sizes = {"games": 4, "hidden": 8, "batch_size": 8, "warm": 40, "replay": 200, "sync": 3}
    return DQN(**{**sizes, **fields})


def train(task: DQN, models: Models, numbers: range) -> list[float]:
    """Train these minibatches by a plain loop; return the losses."""
    optimizer = task.optimizer("main", models["online"].parameters())
    losses = []
    for number in numbers:
        optimizer.param_groups[0]["lr"] = task.lr * task.rate(number / task.minibatches)
        optimizer.zero_grad()
        loss = task.loss(models, task.batch("train", number))
        loss.backward()
        optimizer.step()
        task.after(models, number)
        losses.append(loss.item())
    return losses


def made(task: DQN) -> Models:
    torch.manual_seed(task.seed)
    return task.models()


def test_what_a_minibatch_chooses_comes_by_number() -> None:
    one, same, next_ = (small().batch("train", number) for number in (7, 7, 8))
    assert one[:2] == same[:2] and all(map(torch.equal, one[2:], same[2:]))
    assert one.seed != next_.seed and not torch.equal(one.share_B, next_.share_B)
    assert one.chance_N.shape == one.random_N.shape == (4,) and one.share_B.shape == (8,)


def test_training_is_reproduced_by_the_numbers() -> None:
    told = [train(task, made(task), range(12)) for task in (small(), small(), small(seed=1))]
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize("game", ["breakout", "racer", "galaga"])
def test_a_job_that_goes_on_from_a_state_trains_as_if_never_stopped(game: str) -> None:
    whole = small(game=game)
    wholes = made(whole)
    losses = train(whole, wholes, range(10))
    kept = {name: value.clone() for name, value in whole.state().items()}
    weights = {name: value.clone() for name, value in wholes["online"].state_dict().items()}
    losses = train(whole, wholes, range(10, 25))
    again = small(game=game)
    models = made(again)
    models["online"].load_state_dict(weights)
    again.restore(models, kept)
    assert train(again, models, range(10, 25)) == losses


def test_before_the_first_minibatch_there_is_nothing_to_keep() -> None:
    task = small()
    models = made(task)
    assert task.state() == {}
    task.restore(models, {})
    task.after(models, 0)
    assert task.state() == {}


def test_the_target_is_copied_every_so_many_minibatches() -> None:
    task = small(sync=5)
    models, copies = made(task), []
    for number in range(12):
        train(task, models, range(number, number + 1))
        assert task._player
        target = task._player.target.state_dict()
        copies.append(
            all(map(torch.equal, target.values(), models["online"].state_dict().values()))
        )
    assert [number + 1 for number, copied in enumerate(copies) if copied] == [5, 10]


def test_the_network_has_as_many_values_as_said() -> None:
    task = DQN()
    assert sum(map(parameter_count, task.models().values())) == task.parameters
    assert greedy(task.models()["online"])(*task.example()).shape == (1,)


@pytest.mark.parametrize(
    ("name", "value"),
    [("game", "tetris"), ("game", "gym:"), ("games", 0), ("stack", 0), ("ahead", 0), ("hidden", 0),
     ("warm", 3), ("replay", 10), ("sync", 0), ("discount", 1.0), ("explore", 1.5),
     ("annealed", 0.0)],
)  # fmt: skip
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        DQN(**{name: value})


def test_files_of_a_user_are_answered(tmp_path: Path) -> None:
    task = small()
    models = made(task)
    (asked := tmp_path / "play.json").write_text('{"seed": 7}')
    told = task.predict(models, asked)
    assert told["played"] == str(tmp_path / "play.gif")
    again = play(task._games(1), greedy(models["online"]), task.stack, 7)
    assert (told["return"], told["steps"]) == (again.mean, len(again.moments))
    save_gif(again.moments[:4], tmp_path / "some.gif")
    said = task.predict(models, tmp_path / "some.gif")
    wanted = values(models["online"], again.moments[3].seen)[0]
    assert list(said["values"].values()) == pytest.approx(wanted.tolist(), abs=1e-4)
    assert said["action"] == ("left", "stay", "right")[int(wanted.argmax())]
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "black.png")
    assert set(task.predict(models, tmp_path / "black.png")["values"]) == {"left", "stay", "right"}
    for text in ("{}", '{"seed": -1}', '{"seed": "x"}', '{"observation": [1, 2]}', "no"):
        asked.write_text(text)
        with pytest.raises(UsageError, match=r"play.json holds .* - allowed: "):
            task.predict(models, asked)


def test_an_environment_of_gymnasium_is_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    task = small(game="gym:CartPole-v1", stack=1)
    models = made(task)
    assert len(train(task, models, range(5))) == 5
    (asked := tmp_path / "pole.json").write_text(json.dumps({"observation": [0, 0, 0.1, 0]}))
    assert task.predict(models, asked)["action"] in ("0", "1")
    with pytest.raises(UsageError, match="holds a picture - allowed: JSON"):
        task.predict(models, tmp_path / "pole.png")


def test_values_converge_to_those_of_the_chain() -> None:
    task = DQN(
        game="chain", stack=1, ahead=1, hidden=64, minibatches=700, explore=1.0, lr=3e-3,
        discount=0.9, sync=10, warm=400, replay=2000,
    )  # fmt: skip
    models = made(task)
    train(task, models, range(task.minibatches))
    every = torch.from_numpy(255 * np.eye(LENGTH, dtype=np.uint8))[:, None]
    apart = np.abs(values(models["online"], every).numpy() - best_values(0.9))
    assert apart.max() < 0.05


@pytest.mark.slow
def test_it_learns_to_play_and_its_picture_shows_it() -> None:
    task = DQN(seed=0, game="racer", minibatches=800)  # the quickest; scripts/study_games.py: all
    models = made(task)
    train(task, models, range(task.minibatches))
    scores, base = task.score(models, task.batches("test")), task.baselines()
    assert scores["times_random_steps"] >= 2 and scores["return"] > max(base.values())
    assert task.picture(models).width > 500
