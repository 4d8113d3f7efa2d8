"""Films of people: states follow the script, and falls are told."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch

from trainers.data.skeletons import STATES
from trainers.synth.films import Event, Film
from trainers.synth.human_films import FALLEN, LOOK, SCRIPTS, human_film

SMALL = LOOK.__class__(**{**LOOK.__dict__, "side": 64})


def states(film: Film, person: int = 0) -> list[str]:
    """Return the states somebody goes through, without repetitions."""
    said = []
    for truth, who in zip(film.truths, film.who, strict=True):
        assert truth.states_N is not None
        said += [STATES[int(n)] for n in truth.states_N[who == person]]
    return [state for state, _ in groupby(said)]


@pytest.mark.parametrize(
    "script, expected",
    [
        ("fall", ["Walking", "Lying"]),
        ("lie", ["Lying"]),
        ("sit", ["Standing", "Sitting", "Standing", "Walking"]),
        ("crouch", ["Walking", "Standing", "Crouch", "Standing", "Walking"]),
        ("bench", ["Standing", "Sitting", "Lying"]),
        ("walk", ["Walking"]),
        ("run", ["Running"]),
        ("stand", ["Standing"]),
    ],
)
def test_states_follow_the_script(script: str, expected: list[str]) -> None:
    assert set(SCRIPTS) >= {script}
    film = human_film(3, (script,), rate=5, look=SMALL)
    assert states(film) == expected
    assert bool(film.events) == (script in ("fall", "lie"))
    assert sum(map(len, film.who)) > 0.9 * len(film)


def test_a_fall_is_told_from_the_first_frame_on_the_ground() -> None:
    film = human_film(1, ("walk", "fall", "lie"), rate=10, look=SMALL)
    (fall, already) = film.events
    assert (fall.what, fall.who, fall.last) == (FALLEN, 1, len(film) - 1)
    assert already == Event(FALLEN, 2, 0, len(film) - 1)
    for frame, (truth, who) in enumerate(zip(film.truths, film.who, strict=True)):
        assert truth.states_N is not None
        lying = STATES[int(truth.states_N[who == 1][0])] == "Lying"
        assert lying == (frame >= fall.first)


def test_a_film_is_a_function_of_its_seed_and_nobody_jumps() -> None:
    film, again = (human_film(2, ("fall",), look=SMALL, neck=True) for _ in range(2))
    assert np.array_equal(film.frames[5], again.frames[5])
    places = []
    for truth in film.truths:
        assert truth.joints_NJ3 is not None and truth.joints_NJ3.shape[1] == 18
        places.append(truth.joints_NJ3[0, 11:13, :2].mean(0))
    steps = torch.stack(places).diff(dim=0).norm(dim=1)
    assert 0.5 < float(steps.max()) < 6
