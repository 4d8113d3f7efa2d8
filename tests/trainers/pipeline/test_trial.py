"""Drawn films of which all is known: true answers raise every alarm and give every tag."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectors import SMALL, begun, certain

from dlplatform.checkpoint import Checkpoint, make_task, weights_of
from trainers.data.instances import Found
from trainers.data.scenes import Bytes
from trainers.human.instances import SUBJECTS as NAMED
from trainers.human.instances import Objects
from trainers.pipeline.trial import judge_falls, judge_tags, true_look
from trainers.synth.films import Film
from trainers.synth.objects import NAMES, SUBJECTS, TEXTURES, object_film

ROOT = Path(__file__).resolve().parents[3]


def blind(film: Film) -> Callable[[Bytes], Found]:
    """Return what never finds anything."""
    return lambda image: Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))


def test_true_states_tell_of_every_fall_and_of_who_lies_on_a_bench() -> None:
    rows = judge_falls(true_look, films=1, rate=5)
    every = rows["all but the bench"]
    assert every["events"] == 2 and every["recall"] == every["precision"] == 1
    assert every["false_alarms_per_hour"] == 0 and 0.8 <= every["median_latency"] <= 2
    bench = rows["lies on a bench"]
    assert (bench["events"], bench["alerts"]) == (0, 1) and "recall" not in bench
    assert bench["false_alarms_per_hour"] == pytest.approx(3600 / bench["seconds"])


def test_who_sees_nothing_tells_of_nothing() -> None:
    rows = judge_falls(blind, films=1, rate=2)
    assert rows["falls"]["recall"] == 0 and rows["all but the bench"]["alerts"] == 0


def test_true_objects_are_all_the_tags_and_films_of_a_theme_are_alike() -> None:
    names = NAMES[::9]
    right, none = (judge_tags(watch, names, films=2) for watch in (true_look, blind))
    assert right == {"tag_f1": 1, "alike": 1, "chance": 0.2}
    assert none["tag_f1"] == 0


def test_films_pass_over_what_they_are_about() -> None:
    names = NAMES[:6]
    film = object_film(3, names, about=names[1::3])
    labels = torch.cat([truth.labels_N for truth in film.truths])
    assert set(labels.tolist()) == {1, 4} and film.kinds.names == names
    assert len(film) == 30 and film.frames[0].shape == (128, 128, 3)
    assert (film.frames[0] != film.frames[1]).any()
    again = object_film(3, names, about=names[1::3])
    assert all((a == b).all() for a, b in zip(film.frames, again.frames, strict=True))


def test_fish_are_of_one_shape_and_weapons_are_rare() -> None:
    assert tuple(SUBJECTS) == NAMED
    fish, weapons = (Objects(subject=name, pictures=40).examples("train") for name in SUBJECTS)
    assert fish.kinds.names == tuple(f"{texture} crescent" for texture in TEXTURES)
    assert all(len(fish[index][1].labels_N) for index in range(40))
    counts = [len(weapons[index][1].labels_N) for index in range(40)]
    assert len(weapons.kinds.names) == 3 and 5 <= sum(count > 0 for count in counts) <= 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "columns"),
    [
        ("human/state", ["--films", "1"], {"seconds", "events", "alerts", "recall"}),
        ("human/instances", ["--films", "1"], {"tag_f1", "alike", "chance"}),
        ("human/instances", ["--alarm", "solid disc"], {"score", "recall", "precision"}),
    ],
)
def test_the_script_judges_a_run(
    name: str, words: list[str], columns: set[str], tmp_path: Path
) -> None:
    settings = {"name": name, **SMALL, "most": 3, "shown": 0.3}
    task = make_task(settings)
    models = certain(begun(task))  # type: ignore[arg-type]
    Checkpoint(0, weights_of(models), settings={"task": settings}).save(tmp_path)
    line = [sys.executable, str(ROOT / "scripts" / "judge.py"), "--run", str(tmp_path), *words]
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(columns <= set(row) | {"recall"} for row in json.loads(done.stdout).values())
