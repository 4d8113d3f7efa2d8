"""The dense product against its definition in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import RATES, SEEDS, at, same, unaligned, values

from kernels import cpu, reference

SIDES = st.one_of(st.integers(0, 9), st.sampled_from([31, 32, 33, 64, 127, 128, 129, 200]))


def product(
    c: np.ndarray, a: np.ndarray, b: np.ndarray, alpha: float = 1.0, beta: float = 0.0
) -> np.ndarray:
    out = c.copy()
    cpu.matrix(at(out), at(a), at(b), a.shape[0], a.shape[1], b.shape[1], alpha, beta)
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS, m=SIDES, k=SIDES, n=SIDES, shift=st.integers(0, 15), alpha=RATES, beta=RATES,
    odd=st.booleans(),
)  # fmt: skip
def test_a_product_is_bit_equal_to_its_definition(
    seed: int, m: int, k: int, n: int, shift: int, alpha: float, beta: float, odd: bool
) -> None:
    rng = np.random.default_rng(seed)
    c, a, b = (
        unaligned(values(rng, rows * columns, odd), shift).reshape(rows, columns)
        for rows, columns in ((m, n), (m, k), (k, n))
    )
    with np.errstate(all="ignore"):
        expected = reference.matrix(c, a, b, alpha, beta)
    same(product(c, a, b, alpha, beta), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 300, 48), (257, 129, 65), (3, 1000, 500)])
def test_a_product_is_that_of_numpy(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    rng = np.random.default_rng(m)
    c, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, n), (m, k), (k, n)))
    exact = 0.5 * (a.astype(np.float64) @ b) + 2.0 * c
    np.testing.assert_allclose(product(c, a, b, 0.5, 2.0), exact, rtol=1e-5, atol=1e-5 * k**0.5)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    """The same bits whether a matrix is multiplied whole or row by row."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((11, 150), (150, 70)))
    whole = product(np.zeros((11, 70), np.float32), a, b)
    for i in range(11):
        same(product(np.zeros((1, 70), np.float32), a[i : i + 1].copy(), b)[0], whole[i])


def test_beta_zero_forgets_what_was_there() -> None:
    c, a = np.full((2, 2), np.nan, np.float32), np.eye(2, dtype=np.float32)
    assert np.array_equal(product(c, a, a), a)
