"""World: who am I, told by whatever launched this process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlplatform.errors import UsageError
from dlplatform.world import LAUNCHERS, World


def variables(launcher: str, rank: int, size: int) -> dict[str, str]:
    return dict(zip(LAUNCHERS[launcher], map(str, (rank, size, rank % 2, 2)), strict=True))


STEP = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "5", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}  # fmt: skip
"""What srun -n5 -N3 gives its fourth task."""
OTHERS = [launcher for launcher in LAUNCHERS if launcher != "Slurm"]


def test_nothing_is_one_worker() -> None:
    assert World.detect({}) == World(0, 1, 0, 1, "")


@pytest.mark.parametrize("launcher", OTHERS)
def test_every_launcher_is_understood(launcher: str) -> None:
    world = World.detect(variables(launcher, 3, 4))
    assert world == World(3, 4, 1, 2, launcher)
    assert world.mpi == (launcher in ("Open MPI", "MPICH"))


@pytest.mark.parametrize("launcher", OTHERS)
def test_without_a_local_rank_all_are_on_one_host(launcher: str) -> None:
    env = dict(list(variables(launcher, 3, 4).items())[:2])
    assert World.detect(env) == World(3, 4, 3, 4, launcher)


def test_a_task_of_srun() -> None:
    assert World.detect(STEP) == World(3, 5, 1, 2, "Slurm")
    last = {"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
    assert World.detect(STEP | last) == World(4, 5, 0, 1, "Slurm")


def test_a_task_of_srun_with_pmi_needs_no_mpi() -> None:
    """What srun --mpi=pmi2 and --mpi=pmix add: MPI may be there, or not."""
    pmi = {"PMI_RANK": "3", "PMI_SIZE": "5", "PMI_FD": "13", "PMIX_RANK": "3"}
    assert World.detect(STEP | pmi) == World(3, 5, 1, 2, "Slurm")


def test_a_batch_script_is_no_rank() -> None:
    env = {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}
    assert World.detect(env | {"SLURM_PROCID": "0"}) == World()


def test_a_single_task_of_srun_starts_workers_itself() -> None:
    one = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "PMI_RANK": "0", "PMI_SIZE": "1"}
    assert World.detect(STEP | one) == World()
    assert World.detect(STEP | one | variables("dlp", 3, 4)) == World(3, 4, 1, 2, "dlp")


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        ("Open MPI", {}),
        ("MPICH", {}),
        ("torchrun", {"TORCHELASTIC_RUN_ID": "none"}),
        ("dlp", {}),
    ],
)
def test_launchers_inside_a_step_know_better_than_slurm(
    launcher: str, more: dict[str, str]
) -> None:
    """Their daemons are tasks of srun, one on each node, and ranks inherit what daemons know."""
    assert World.detect(STEP | variables(launcher, 6, 8) | more) == World(6, 8, 0, 2, launcher)


def test_variables_set_by_hand_in_a_step_must_agree_with_slurm() -> None:
    assert World.detect(STEP | {"RANK": "3", "WORLD_SIZE": "5"}).rank == 3
    with pytest.raises(UsageError, match="torchrun says rank 0 of 4; Slurm says rank 3 of 5"):
        World.detect(STEP | {"RANK": "0", "WORLD_SIZE": "4"})


def test_nodes_of_slurm_on_one_host_are_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    host = World().node
    monkeypatch.setenv("SLURMD_NODENAME", host)
    assert World().node == host
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    one = World().node
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    assert len({host, one, World().node}) == 3


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
