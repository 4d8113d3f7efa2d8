"""Every operation against its definition in numpy, bit by bit, and against torch's optimizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import (
    ODD,
    RATES,
    SEEDS,
    SIZES,
    at,
    operation,
    packed,
    parts,
    same,
    unaligned,
    unpacked,
    values,
)

from kernels import cpu, reference

BETAS = st.floats(0, 0.9990234375, width=32)
SCALARS = st.tuples(*[RATES] * 5)
ADAM = st.tuples(
    RATES, BETAS, BETAS, st.sampled_from([0.0, 1e-8, 0.5]), RATES, st.integers(0, 1),
    st.integers(1, 2**24),
)  # fmt: skip


def made(rng: np.random.Generator, op: str, size: int, shift: int, odd: bool) -> list[np.ndarray]:
    """y, s, t, x, z, each at its own distance from a cache line."""
    vectors = [unaligned(values(rng, size, odd), (shift + i) % 16) for i in range(5)]
    if op == "merge":
        vectors[4][: size // 2] = vectors[0][: size // 2]  # nobody moved y: x is taken as it is
    if op == "fold":
        vectors[2][: size // 3] = -0.0  # these have taken their step
    if op == "adam" and not odd:
        np.abs(vectors[2], out=vectors[2])
    return vectors


def defined(op: str, vectors: list[np.ndarray], k: tuple[float, ...]) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return [v.copy() for v in reference.apply(op, *(v.copy() for v in vectors), k)]


@pytest.mark.parametrize("op", list(cpu.OPERATIONS))
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, size=SIZES, shift=st.integers(0, 15), k=SCALARS, adam=ADAM, odd=st.booleans())
def test_operation_is_bit_equal_to_its_definition(
    op: str, seed: int, size: int, shift: int, k: tuple[float, ...], adam: tuple[float, ...],
    odd: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    k = adam if op == "adam" else k
    y, s, t, x, z = vectors = made(rng, op, size, shift, odd)
    expected = defined(op, vectors, k)
    o = operation(op, k)
    for start, count in parts(rng, size):
        cpu.apply(o, at(y, start), at(s, start), at(t, start), at(x), at(z), start, count)
    for ours, theirs in zip(vectors, expected, strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("form", ["fp16", "bf16", "int8", "topk"])
@pytest.mark.parametrize("op", list(cpu.OPERATIONS))
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, size=SIZES, k=SCALARS, adam=ADAM, odd=st.booleans())
def test_a_packed_x_means_the_same_as_its_fp32(
    op: str, form: str, seed: int, size: int, k: tuple[float, ...], adam: tuple[float, ...],
    odd: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    k = adam if op == "adam" else k
    y, s, t, x, z = vectors = made(rng, op, size, 0, odd)
    entries = int(rng.integers(0, size + 1)) if form == "topk" else 0
    payload = unaligned(packed(form, x, entries), 1)
    before = payload.copy()
    vectors[3] = unpacked(form, payload, size, entries)
    expected = defined(op, vectors, k)
    if form == "topk" and op in ("axpy", "clip"):  # touch what is in the payload alone
        chosen = payload[: 4 * entries].view(np.uint32)
        rest = np.setdiff1d(np.arange(size), chosen)
        expected[0][rest] = y[rest]
    o = operation(op, k, form, entries)
    for start, count in parts(rng, size):
        cpu.apply(o, at(y, start), at(s, start), at(t, start), at(payload), at(z), start, count)
    for index, ours in ((0, y), (1, s), (2, t), (4, z)):
        same(ours, expected[index])
    assert np.array_equal(payload, before)  # only an fp32 x is ever written


@pytest.mark.parametrize("op", ["scal", "axpy", "axpby", "elastic", "difference", "fetch", "copy"])
def test_vectors_without_a_use_may_be_missing(op: str) -> None:
    y, x, z = (np.arange(100, dtype=np.float32) for _ in range(3))
    cpu.apply(
        operation(op, (0.5, 0.5)), at(y, 10), None, None, None if op == "scal" else at(x),
        at(z) if op == "difference" else None, 10, 90,
    )  # fmt: skip
    assert np.isfinite(y).all()


def test_entries_out_of_the_part_are_never_touched() -> None:
    """A box checks payloads; whatever slips through may spoil values, not memory."""
    guarded = np.zeros(300, np.float32)
    rng = np.random.default_rng(7)
    for _ in range(300):
        entries = int(rng.integers(0, 40))
        positions = rng.integers(0, rng.choice([120, 400, 2**32]), entries).astype(np.uint32)
        payload = np.concatenate([positions.view(np.float32), np.ones(entries, np.float32)])
        op = str(rng.choice(["axpy", "clip", "copy", "sgd"]))
        state = np.zeros(100, np.float32)
        o = operation(op, (1.0, 1.0, 0.0, 0.0), "topk", entries)
        cpu.apply(o, at(guarded, 100), at(state), None, at(payload), None, 50, 100)
        assert not guarded[:100].any()
        assert not guarded[200:].any()


# -- sums and norms ------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, size=SIZES, count=st.integers(1, 6), scale=RATES, average=st.booleans())
def test_sum_and_average_add_in_order(
    seed: int, size: int, count: int, scale: float, average: bool
) -> None:
    rng = np.random.default_rng(seed)
    regions = [unaligned(values(rng, size, False), i % 5) for i in range(count)]
    expected = reference.total(regions, scale)
    addresses = cpu.pointers([region.ctypes.data for region in regions])
    if average:
        cpu.average(addresses, count, size, scale)
        for region in regions:
            same(region, expected)
    else:
        out = np.zeros(size, np.float32)
        cpu.sum_into(out.ctypes.data, addresses, count, size, scale)
        same(out, expected)


def test_order_of_a_sum_matters_and_is_kept() -> None:
    big, small = np.float32([1e8]), np.float32([1.0])
    out = np.zeros(1, np.float32)
    for regions, expected in (((big, -big, small), 1.0), ((big, small, -big), 0.0)):
        addresses = cpu.pointers([region.ctypes.data for region in regions])
        cpu.sum_into(out.ctypes.data, addresses, 3, 1, 1.0)
        assert out[0] == expected


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, size=SIZES, shift=st.integers(0, 15))
def test_norm_is_the_same_everywhere(seed: int, size: int, shift: int) -> None:
    x = unaligned(values(np.random.default_rng(seed), size, False), shift)
    assert cpu.norm(at(x), size) == reference.norm(x)
    np.testing.assert_allclose(cpu.norm(at(x), size), np.linalg.norm(x.astype(float)), rtol=1e-12)


def test_norm_neither_overflows_nor_hides_what_is_not_finite() -> None:
    huge = np.full(33, 3e38, np.float32)
    np.testing.assert_allclose(cpu.norm(at(huge), 33), 3e38 * 33**0.5, rtol=1e-6)
    for odd in (np.nan, np.inf):
        huge[32] = odd
        assert not np.isfinite(cpu.norm(at(huge), 33))


# -- torch ---------------------------------------------------------------------------------

SIZE, STEPS = 1000, 20


def gradients() -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(3)
    return [torch.randn(SIZE, generator=made) for _ in range(STEPS)]


def by_torch(make: type[torch.optim.Optimizer], **options: object) -> np.ndarray:
    weights = torch.nn.Parameter(torch.linspace(-2, 2, SIZE))
    optimizer = make([weights], **options)
    for g in gradients():
        weights.grad = g.clone()
        optimizer.step()
    return weights.detach().numpy()


def by_box(op: str, scalars: tuple[float, ...], numbered: bool = False) -> np.ndarray:
    y = torch.linspace(-2, 2, SIZE).numpy().copy()
    s, t = np.zeros((2, SIZE), np.float32)
    for step, g in enumerate(gradients(), 1):
        k = (*scalars, step) if numbered else scalars
        x = y - g.numpy() if op == "outer" else g.numpy()
        cpu.apply(operation(op, k), at(y), at(s), at(t), at(x), None, 0, SIZE)
    return y


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_torch(momentum: float, decay: float, nesterov: bool) -> None:
    if nesterov and not momentum:
        return
    theirs = by_torch(
        torch.optim.SGD, lr=0.01, momentum=momentum, weight_decay=decay, nesterov=nesterov
    )
    close(by_box("sgd", (0.01, momentum, decay, float(nesterov))), theirs)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_adam_is_that_of_torch(decay: float, decoupled: bool, betas: tuple[float, float]) -> None:
    make = torch.optim.AdamW if decoupled else torch.optim.Adam
    theirs = by_torch(make, lr=0.01, betas=betas, eps=1e-8, weight_decay=decay)
    close(by_box("adam", (0.01, *betas, 1e-8, decay, float(decoupled)), numbered=True), theirs)


def test_the_outer_step_is_nesterov_on_what_x_lost() -> None:
    theirs = by_torch(torch.optim.SGD, lr=0.07, momentum=0.9, nesterov=True)
    close(by_box("outer", (0.07, 0.9)), theirs)


def test_a_delayed_gradient_is_corrected_towards_the_new_weights() -> None:
    """On a quadratic, the gradient at y is x + h (y - s); DC-ASGD takes x x for h."""
    y, s, x = np.float32([2.0]), np.float32([1.0]), np.float32([3.0])
    cpu.apply(operation("delay", (0.5, 1.0)), at(y), at(s), None, at(x), None, 0, 1)
    assert y[0] == s[0] == x[0] == 2.0 - 0.5 * (3.0 + 9.0 * (2.0 - 1.0))


def test_clip_bounds_each_element_and_lets_nan_through() -> None:
    y, x = np.zeros(len(ODD), np.float32), ODD.copy()
    cpu.apply(operation("clip", (2.0, 0.25)), at(y), None, None, at(x), None, 0, len(x))
    assert np.isnan(y[0])
    assert (np.abs(y[1:]) <= 0.5).all()
    assert y[1] == 0.5
    assert y[2] == -0.5
