"""World: who am I, told by whatever launched this process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlplatform.errors import UsageError
from dlplatform.world import LAUNCHERS, World


def variables(launcher: str, rank: int, size: int) -> dict[str, str]:
    return dict(zip(LAUNCHERS[launcher], map(str, (rank, size, rank % 2, 2)), strict=True))


def test_nothing_is_one_worker() -> None:
    assert World.detect({}) == World(0, 1, 0, 1, "")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_is_understood(launcher: str) -> None:
    world = World.detect(variables(launcher, 3, 4))
    assert world == World(3, 4, 1, 2, launcher)
    assert world.mpi == (launcher in ("Open MPI", "MPICH"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_without_a_local_rank_all_are_on_one_host(launcher: str) -> None:
    env = dict(list(variables(launcher, 3, 4).items())[:2])
    assert World.detect(env) == World(3, 4, 3, 4, launcher)


def test_launchers_that_agree_count_once() -> None:
    env = variables("Open MPI", 1, 2) | variables("torchrun", 1, 2)
    assert World.detect(env).launcher == "Open MPI"


@pytest.mark.parametrize(("rank", "size"), [(1, 2), (0, 3)])
def test_launchers_that_disagree_are_both_shown(rank: int, size: int) -> None:
    env = variables("Open MPI", 0, 2) | variables("torchrun", rank, size)
    with pytest.raises(UsageError) as caught:
        World.detect(env)
    text = str(caught.value)
    assert f"Open MPI says rank 0 of 2; torchrun says rank {rank} of {size}" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "one"), ("RANK", ""), ("WORLD_SIZE", "2.0"), ("RANK", "7")]
)
def test_variables_that_are_no_rank_are_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{name}={value}"):
        World.detect(variables("torchrun", 1, 2) | {name: value})


@pytest.mark.parametrize(
    ("rank", "size", "of", "place"),
    [
        (0, 4, 2, (0, 2)),
        (3, 4, 2, (1, 2)),
        (2, 3, 2, (0, 1)),
        (4, 5, 3, (1, 2)),
        (5, 6, 6, (5, 6)),
        (1, 2, 1, (0, 1)),
    ],
)
def test_groups_of_neighbours(rank: int, size: int, of: int, place: tuple[int, int]) -> None:
    inner = World(rank, size, rank, size, "dlp").group(of)
    assert (inner.rank, inner.size) == place
    assert inner.launcher == "dlp"


def test_a_world_does_not_change() -> None:
    with pytest.raises(AttributeError):
        World().rank = 1  # type: ignore[misc]
    assert replace(World(), rank=1).rank == 1
    assert World().node
