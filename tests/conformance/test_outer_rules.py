"""Rules that step alone and exchange now and then: by hand, and as each other where they meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from outer import PLAIN, F, train
from tinyjobs import attach, master, place, together
from tinytask import network
from torch import Tensor, nn

from dlplatform.errors import UsageError
from dlplatform.job import Job, Place
from dlplatform.rules.diloco import DiLoCo
from dlplatform.rules.rule import find_rule, rules
from kernels import reference

LENGTH = 5
each_transport = pytest.mark.parametrize("transport", ["inproc", "shm", "tcp"])
Vector = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def close(ours: list[Tensor], theirs: list[Tensor], atol: float = 2e-6) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


# -- by hand: one worker, known slopes -------------------------------------------------------------

RATE = 0.125


def start() -> Vector:
    return np.arange(LENGTH, dtype=F)


def slope(step: int) -> Vector:
    return F(0.5) * np.arange(1, LENGTH + 1, dtype=F) * (step % 5 + 1)


def walk(where: Place, rule: str, steps: int, **fields: Any) -> tuple[list[Vector], Vector]:
    """Take steps down known slopes; return the weights after each, and the master's at the end."""

    def body(job: Job) -> tuple[list[Vector], Vector]:
        model = nn.ParameterList([nn.Parameter(torch.from_numpy(start()))])
        net = attach(job, rule, model, partial(torch.optim.SGD, lr=RATE), **fields)
        losses = ((torch.from_numpy(slope(step)) * model[0]).sum() for step in range(steps))
        seen = [net.step(loss)[:LENGTH].numpy() for loss in losses]
        net.rule.finish()
        job.groups.clear()
        return seen, master(net)[:LENGTH].numpy()

    return together(1, where, body)[0]


def check(seen: tuple[list[Vector], Vector], expected: Iterator[Vector], last: Vector) -> None:
    for weights, theirs in zip(seen[0], expected, strict=True):
        np.testing.assert_allclose(weights, theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(seen[1], last, rtol=0, atol=1e-5)


@each_transport
def test_diloco_by_hand(transport: str) -> None:
    x, w, m, seen = start(), start(), np.zeros(LENGTH, F), []
    for step in range(8):
        x = x - F(RATE) * slope(step)
        if step % 4 == 3:
            g = w - x
            m = F(0.9) * m + g
            w = w - F(0.7) * (g + F(0.9) * m)
            x = w
        seen.append(x)
    with place(transport) as where:
        check(walk(where, "diloco", 8, interval=4), iter(seen), w)


@each_transport
def test_a_delayed_outer_step_keeps_what_was_learnt_meanwhile(transport: str) -> None:
    x, w, m, seen, due, then = start(), start(), np.zeros(LENGTH, F), [], -1, start()
    for step in range(11):
        x = x - F(RATE) * slope(step)
        if step == due:
            x = x + F(0.75) * (w - then)
        if step % 4 == 3:
            g, then, due = w - x, x, step + 2
            m = F(0.5) * m + g
            w = w - F(0.7) * (g + F(0.5) * m)
        seen.append(x)
    fields = {"interval": 4, "delay": 2, "mix": 0.25, "momentum": 0.5}
    with place(transport) as where:
        walked, _ = walk(where, "diloco", 11, **fields)
    check((walked, w), iter(seen), w)


@each_transport
def test_adiloco_by_hand(transport: str) -> None:
    """Each drift moves the weights at once, the momentum follows after every second one."""
    x, w, m, gathered, seen = start(), start(), np.zeros(LENGTH, F), np.zeros(LENGTH, F), []
    for step in range(12):
        x = x - F(RATE) * slope(step)
        if step % 2:
            g = w - x
            w, gathered = w - F(0.35) * g, gathered + g
            if step % 4 == 3:
                m = F(0.9) * m + gathered / 2
                w, gathered = w - F(0.7 * 0.9) * m, np.zeros(LENGTH, F)
            x = w
        seen.append(x)
    with place(transport) as where:
        check(walk(where, "adiloco", 12, interval=2, every=2, momentum=0.9), iter(seen), w)


@each_transport
def test_an_elastic_exchange_may_take_several_steps(transport: str) -> None:
    x, centre, d, seen = start(), start(), np.zeros(LENGTH, F), []
    for step in range(9):
        x = x - F(RATE) * slope(step)
        if step % 3 == 1 and step > 2:  # two steps after the exchange
            x = x - d
        if step % 3 == 2:
            d = F(0.5) * (x - centre)
            centre = centre + d
        seen.append(x)
    with place(transport) as where:
        walked, _ = walk(where, "easgd", 9, rate=0.5, interval=3, window=2)
    check((walked, centre), iter(seen), centre)


@each_transport
def test_eamsgd_by_hand(transport: str) -> None:
    x, centre, v, d, seen = start(), start(), np.zeros(LENGTH, F), np.zeros(LENGTH, F), []
    for step in range(6):
        v = F(0.75) * v - F(0.25 * RATE) * slope(step)
        x = x + v - d
        d = F(0.5) * (x - centre)
        centre = centre + d
        seen.append(x + F(0.75) * v)
    with place(transport) as where:
        check(walk(where, "eamsgd", 6, rate=0.5, momentum=0.75), iter(seen), centre)


@each_transport
def test_halos_by_hand(transport: str) -> None:
    x, near, base, w, seen = start(), start(), start(), start(), []
    for step in range(8):
        x = x - F(RATE) * slope(step)
        if step % 2:
            near = near - (near - x)
            if step % 4 == 3:
                w = w - F(0.5) * (base - near)
                near = near + F(0.25) * (w - near)
                base = near
            x = near
        seen.append(x)
    fields = {"interval": 2, "updates": 2, "rate": 0.5, "momentum": 0.0, "group_size": 1}
    with place(transport, 2) as where:
        walked, last = walk(where, "halos", 8, **fields)
    check((walked, w), iter(seen), w)
    np.testing.assert_allclose(last, w - F(0.5) * (base - near), rtol=0, atol=1e-5)


@each_transport
def test_dcasgd_by_hand(transport: str) -> None:
    """Two workers take turns: each step is corrected for the other's."""
    w, t = start(), np.zeros(LENGTH, F)
    backups = [start(), start()]
    for step in range(6):
        s = backups[step % 2]
        x = F(RATE) * slope(step)  # base - weights after the step
        w, backups[step % 2], t, _, _ = reference.adapt(w, s, t, x, x, (1.0, 2.0, 0.9, 1e-16))
    turn = threading.Condition()
    now = [0]

    def body(job: Job) -> Vector:
        model = nn.ParameterList([nn.Parameter(torch.from_numpy(start()))])
        make = partial(torch.optim.SGD, lr=RATE)
        net = attach(job, "dcasgd", model, make, decay=0.9)
        for step in range(job.rank, 6, 2):
            with turn:
                turn.wait_for(lambda step=step: now[0] == step)
                net.step((torch.from_numpy(slope(step)) * model[0]).sum())
                now[0] += 1
                turn.notify_all()
        net.rule.finish()
        job.groups.clear()
        return master(net)[:LENGTH].numpy()

    with place(transport) as where:
        np.testing.assert_allclose(together(2, where, body)[1], w, rtol=0, atol=1e-5)


# -- as each other ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("localsgd", {"interval": 3}),
        ("diloco", {"interval": 3, "rate": 1.0, "momentum": 0.0}),
        ("quorum", {"interval": 3, "rate": 1.0, "momentum": 0.0, "delay": 0}),
        ("adiloco", {"interval": 3, "rate": 1.0, "momentum": 0.0}),
        ("halos", {"interval": 3, "updates": 1, "rate": 1.0, "momentum": 0.0, "merge": 1.0}),
        ("dcasgd", {}),
        ("ssp", {}),
        ("ssp", {"staleness": 0}),
        ("eamsgd", {"rate": 0.0, "momentum": 0.0}),
    ],
    ids=str,
)
def test_one_worker_is_alone(rule: str, fields: dict[str, Any]) -> None:
    with place() as where, place() as other:
        alone = train("alone", other, 1)[0]
        ours = train(rule, where, 1, **fields)
    close(ours[:1], [alone])
    if rule != "eamsgd":  # its centre has not moved
        close(ours[1:], [alone])


@each_transport
def test_ssp_with_staleness_0_is_ssgd(transport: str) -> None:
    with place(transport, 2) as where, place(transport, 2) as other:
        ssp = train("ssp", where, 3, staleness=0)
        ssgd = train("ssgd", other, 3)
    assert all(map(torch.equal, ssp[:3], ssgd[:3]))


@each_transport
def test_localsgd_is_repeatable_and_at_interval_1_ssgd(transport: str) -> None:
    runs = []
    for _ in range(2):
        with place(transport, 2) as where:
            runs.append(train("localsgd", where, 3, interval=4))
    assert all(map(torch.equal, *runs))
    with place(transport) as where, place(transport) as other:
        close(train("localsgd", where, 3, interval=1)[:3], train("ssgd", other, 3)[:3])


@each_transport
@pytest.mark.parametrize("fragments", [1, 3])
def test_diloco_with_rate_1_and_no_momentum_is_localsgd(transport: str, fragments: int) -> None:
    """With fragments only at an interval of 1, where all of them are exchanged at every step."""
    interval = 1 if fragments > 1 else 4
    fields = {"interval": interval, "rate": 1.0, "momentum": 0.0}
    if fragments > 1:
        with pytest.raises(UsageError, match=r"rule.fragments=3 - allowed: 1 to rule.interval"):
            DiLoCo(fragments=3, **fields)._check()
        return
    with place(transport, 2) as where, place(transport) as other:
        diloco = train("diloco", where, 3, **fields)
        local = train("localsgd", other, 3, interval=interval)
    close(diloco, local)


def test_fragments_are_exchanged_in_turn() -> None:
    """Three fragments, each with its own third of the interval, by hand for one worker."""
    length = 3 * 1024
    begin = np.linspace(0, 1, length, dtype=F)

    def body(job: Job) -> list[Vector]:
        model = nn.ParameterList([nn.Parameter(torch.from_numpy(begin.copy()))])
        make = partial(torch.optim.SGD, lr=RATE)
        net = attach(job, "diloco", model, make, interval=6, fragments=3, momentum=0.0, rate=0.5)
        seen = [net.step(model[0].sum()).numpy().copy() for _ in range(8)]
        job.groups.clear()
        return seen

    with place() as where:
        (seen,) = together(1, where, body)
    x, w = begin.copy(), begin.copy()
    for step, weights in enumerate(seen, 1):
        x = x - F(RATE)
        for part in range(3):
            if step % 6 == (2, 4, 0)[part]:
                cut = slice(1024 * part, 1024 * (part + 1))
                w[cut] = w[cut] - F(0.5) * (w[cut] - x[cut])
                x[cut] = w[cut]
        np.testing.assert_allclose(weights, x, rtol=0, atol=1e-5)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fields", "words"),
    [
        *((name, {"interval": 0}, "rule.interval=0") for name in ("localsgd", "diloco", "adiloco",
          "halos", "dcasgd")),
        ("diloco", {"rate": 0.0}, "rule.rate=0.0 - allowed: above 0"),
        ("diloco", {"momentum": 1.0}, "rule.momentum=1.0"),
        ("diloco", {"delay": 20}, "rule.delay=20"),
        ("diloco", {"mix": 1.0}, "rule.mix=1.0"),
        ("diloco", {"wire": "int4"}, "rule.wire=int4 - allowed: fp32, fp16"),
        ("diloco", {"wire": "topk:2"}, "rule.wire=topk:2"),
        ("quorum", {"needed": 2}, "rule.needed=2"),
        ("adiloco", {"every": 0}, "rule.every=0"),
        ("halos", {"merge": 0.0}, "rule.merge=0.0"),
        ("halos", {"group_size": 2}, "rule.group_size=2 of 1 workers"),
        ("dcasgd", {"correction": -1.0}, "rule.correction=-1.0"),
        ("easgd", {"window": 2}, "rule.window=2 of rule.interval=1"),
        ("ssp", {"staleness": -1}, "rule.staleness=-1"),
        ("eamsgd", {"momentum": 1.0}, "rule.momentum=1.0"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_work(rule: str, fields: dict[str, Any], words: str) -> None:
    act: Callable[[Job], Any] = lambda job: attach(job, rule, network(), PLAIN, **fields) and None  # noqa: E731
    with place() as where, pytest.raises(UsageError, match=words.replace(".", r"\.")):
        together(1, where, act)


def test_all_new_rules_have_a_case_by_hand() -> None:
    assert {"diloco", "adiloco", "eamsgd", "halos", "dcasgd", "ssp", "localsgd", "quorum"} <= set(
        rules()
    )
    assert find_rule("quorum").survives
