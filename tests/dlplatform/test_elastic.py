"""Workers come to a running job and leave it: nobody waits for them, every number is done once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tinyjobs import Died, attach, enrol, master, place, together, until
from tinytask import network, optimizer, points
from torch.nn import functional

from dlplatform.job import Job, Place
from dlplatform.memorybox import wire
from dlplatform.memorybox.session import LEFT
from dlplatform.rules.rule import rules
from dlplatform.statistics import Statistics
from dlplatform.world import LATE, World

CASES: list[tuple[str, dict[str, Any]]] = [
    ("asgd", {}), ("asgd", {"interval": 3}), ("easgd", {}), ("easgd", {"overlap": False}),
]  # fmt: skip


def train(
    job: Job, rule: str, fields: dict[str, Any], late: int = 0, steps: int = 1 << 30
) -> list[int]:
    """Train until no number is left, or until it has made some steps and leaves.

    Those who began leave work to so many who are late: each of them trains five numbers at least.
    """
    torch.set_num_threads(1)
    net = attach(job, rule, network(job.rank), partial(optimizer, "plain"), **fields)
    done, served = list[int](), job.cluster.counter("served")
    job.work.leaving = lambda: len(done) >= steps
    while (number := net.rule.claim(job)) is not None:
        xy, labels = points(number)
        net.step(functional.cross_entropy(net.model(xy), labels))
        done.append(number)
        if job.world.late:
            served.add(len(done) <= 5)
        if len(done) == 5 < steps if job.world.late else number >= 50:
            served.wait(5 * late, 20)
    return done


@pytest.mark.parametrize("transport", ["inproc", "shm", "tcp"])
@pytest.mark.parametrize(("rule", "fields"), CASES)
def test_newcomers_take_their_share(rule: str, fields: dict[str, Any], transport: str) -> None:
    with place(transport) as where:
        seen = together(
            2, where, lambda job: train(job, rule, fields, 3), late=3, total=200, timeout_s=20.0
        )
    assert sorted(number for done in seen for number in done) == list(range(200))
    assert all(len(done) >= 5 for done in seen[2:])


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(("rule", "fields"), CASES)
def test_whoever_leaves_takes_nothing_along(
    rule: str, fields: dict[str, Any], transport: str
) -> None:
    def body(job: Job) -> tuple[list[int], bool]:
        steps = 5 if job.world.late else 1 << 30
        return train(job, rule, fields, 2, steps), job.work.left

    with place(transport) as where:
        seen = together(2, where, body, late=2, total=150, timeout_s=20.0)
    assert sorted(number for done, _ in seen for number in done) == list(range(150))
    assert [left for _, left in seen] == [False, False, True, True]
    assert [len(done) for done, _ in seen[2:]] == [5, 5]


def test_one_who_left_holds_no_number_back() -> None:
    def body(job: Job) -> int:
        if job.world.late:
            job.work.leaving = lambda: job.work.rounds > 1
            assert job.work.next() is not None
            job.work.done()
            assert job.work.next() is None
            return 0
        until(lambda: job.cluster.state(1) == LEFT, 10)
        while job.work.next() not in (5, None):
            job.work.done()
        return job.work.safe_position()

    with place("shm") as where:
        assert together(1, where, body, late=1, total=10)[0] == 6


def test_a_newcomer_that_dies_leaves_its_number_to_the_others() -> None:
    def body(job: Job) -> list[int]:
        if job.world.late:
            assert job.work.next() is not None
            raise Died
        until(job.cluster.dead, 10)
        assert job.cluster.dead() == [2]
        return train(job, "asgd", {})

    with place("shm") as where:
        first, second, _ = together(2, where, body, late=1, total=40)
    assert sorted(first + second) == list(range(40))


@pytest.mark.parametrize("rule", ["asgd", "easgd"])
def test_a_newcomer_starts_with_the_weights_of_now(rule: str) -> None:
    def body(job: Job) -> torch.Tensor:
        if not job.world.late:
            net = attach(job, rule, network(), partial(optimizer, "plain"))
            for number in range(5):
                xy, labels = points(number)
                net.step(functional.cross_entropy(net.model(xy), labels))
            net.rule.gradients()  # no exchange is under way any more
            weights = master(net)
            job.cluster.counter("trained").add(1)
            job.cluster.counter("looked").wait(1)
            return weights
        job.cluster.counter("trained").wait(1)
        net = attach(job, rule, network(7), partial(optimizer, "plain"))
        weights = net.group.weight.clone()
        job.cluster.counter("looked").add(1)
        return weights

    with place("tcp") as where:
        theirs, mine = together(1, where, body, late=1)
    assert torch.equal(theirs, mine)


def test_the_moving_rate_follows_those_who_are_here() -> None:
    rates: dict[str, float] = {}

    def body(job: Job) -> None:
        net = attach(job, "easgd", network(), partial(optimizer, "plain"), overlap=False)
        stage = job.cluster.counter("stage")

        def step(name: str) -> None:
            net.step(functional.cross_entropy(net.model(points(0)[0]), points(0)[1]))
            rates[name] = net.rule.moving_rate  # type: ignore[attr-defined]

        if job.world.late:
            step("joined")
            stage.add(1)
            return
        stage.wait(1)
        until(lambda: job.cluster.state(1) == LEFT, 10)
        step("alone again")

    with place("shm") as where:
        together(1, where, body, late=1)
    assert rates == {"joined": pytest.approx(0.45), "alone again": pytest.approx(0.9)}


def test_a_rate_of_ones_own_stays() -> None:
    def body(job: Job) -> float:
        net = attach(job, "easgd", network(), partial(optimizer, "plain"), rate=0.3, overlap=False)
        net.step(functional.cross_entropy(net.model(points(0)[0]), points(0)[1]))
        return float(net.rule.moving_rate)  # type: ignore[attr-defined]

    with place() as where:
        assert together(2, where, body, late=1) == [0.3] * 3


def test_the_next_one_is_chief_when_the_chief_has_left() -> None:
    """Also when a rank was given out and nobody ever came with it."""

    def body(job: Job) -> bool:
        if not job.world.late:
            enrol(where)
            job.cluster.counter("enrolled").add(1)
            until(lambda: len(job.cluster.here()) == 2, 10)
            assert job.cluster.is_chief()
            job.cluster.counter("looked").wait(1)
            return True
        before = job.cluster.is_chief()
        job.cluster.counter("looked").add(1)
        until(job.cluster.is_chief, 10)
        assert not before
        assert job.cluster.here() == [job.rank]
        return job.cluster.is_chief()

    with place("shm") as where:
        assert together(1, where, body, late=1) == [True, True]


def test_statistics_leave_out_who_has_none_yet() -> None:
    def models(mean: float) -> dict[str, torch.nn.Module]:
        norm = torch.nn.BatchNorm1d(2)
        norm.running_mean.fill_(mean)  # type: ignore[union-attr]
        return {"net": norm}

    def body(job: Job) -> float:
        ours = models(job.rank + 1.0)
        if job.rank < 2:
            statistics = Statistics(job, ours)
            job.cluster.counter("published").add(1)
            job.cluster.counter("published").wait(2)
            until(lambda: len(job.cluster.here()) == 3, 10)
            statistics.average(ours)
            job.cluster.counter("averaged").add(1)
        else:
            job.cluster.counter("published").wait(2)
            job.cluster.counter("averaged").wait(2)
            Statistics(job, ours)  # starts with what the others have seen
        job.cluster.counter("done").add(1)
        job.cluster.counter("done").wait(3)
        return float(ours["net"].running_mean[0])  # type: ignore[index]

    with place("shm") as where:
        assert together(2, where, body, late=1) == [1.5] * 3


# -- who can join -------------------------------------------------------------------------


def test_rules_that_can_be_joined_survive_deaths() -> None:
    ours = {name for name, cls in rules().items() if cls.elastic}
    assert {"asgd", "easgd"} <= ours
    assert not {"alone", "ssgd", "hybrid"} & ours
    assert all(cls.survives for cls in rules().values() if cls.elastic)


def test_a_rank_beyond_the_size_is_late_and_only_if_meant() -> None:
    env = {"DLP_RANK": "5", "DLP_SIZE": "2", "DLP_LOCAL_RANK": "0", "DLP_LOCAL_SIZE": "3"}
    assert World.detect({**env, LATE: "1"}).late
    assert not World(1, 2).late
    with pytest.raises(ValueError, match="DLP_RANK=5 of DLP_SIZE=2"):
        World.detect(env)


def test_a_place_is_kept_for_its_owner_and_without_a_secret_that_has_a_file(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, file = tmp_path / "join.json", tmp_path / "secret"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    monkeypatch.setenv(wire.SECRET, "passed on")
    Place.given(["tcp://127.0.0.1:7000"], "", "mine").keep(door)
    assert door.stat().st_mode & 0o777 == 0o600
    assert Place.found(door).secret == "passed on"
    Place.given(["tcp://127.0.0.1:7000"], str(file), "mine").keep(door)
    assert "s3cret" not in door.read_text()
    assert Place.found(door).secret == "s3cret"
