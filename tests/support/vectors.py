"""Vectors that kernels get wrong: odd values, odd sizes, odd addresses."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
from hypothesis import strategies as st

from kernels import cpu

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.one_of(st.integers(0, 70), st.integers(0, 5000), st.sampled_from([1023, 4096, 65537]))
RATES = st.floats(-2, 2, width=32)
ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, 1e-38], dtype=np.float32)


def values(rng: np.random.Generator, size: int, odd: bool) -> np.ndarray:
    made = (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    if odd and size:
        made[rng.integers(0, size, min(size, 9))] = rng.choice(ODD, min(size, 9))
    return made


def unaligned(data: np.ndarray, shift: int) -> np.ndarray:
    """Copy into memory that starts ``shift`` times four bytes after a 64-byte border."""
    data = np.ascontiguousarray(data)
    raw = np.empty(data.nbytes + 128 + 4 * shift, np.uint8)
    start = -raw.ctypes.data % 64 + 4 * shift
    view = raw[start : start + data.nbytes].view(data.dtype)
    view[:] = data
    return view


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Bit-equal, except that one NaN is as good as another."""
    assert ours.dtype == theirs.dtype == np.float32
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), nan)
    assert np.array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


def parts(rng: np.random.Generator, size: int) -> list[tuple[int, int]]:
    """Cut [0, size) somewhere, in any order: (at, count)."""
    cuts = [0, *sorted(rng.integers(0, size + 1, rng.integers(0, 4)).tolist()), size]
    pieces = [(a, b - a) for a, b in itertools.pairwise(cuts)]
    rng.shuffle(pieces)
    return pieces


def at(array: np.ndarray | None, element: int = 0) -> int | None:
    return None if array is None else array.ctypes.data + element * array.itemsize


def packed(form: str, v: np.ndarray, entries: int = 0) -> np.ndarray:
    """The payload of v, made by the C code."""
    code = cpu.FORMATS[form]
    payload = np.empty(cpu.payload_bytes(code, len(v), entries), np.uint8)
    assert cpu.pack(code, at(v), None, at(payload), len(v), entries) == 0
    return payload


def unpacked(form: str, payload: np.ndarray, size: int, entries: int = 0) -> np.ndarray:
    out = np.empty(size, np.float32)
    cpu.unpack(cpu.FORMATS[form], at(payload), at(out), 0, size, entries)
    return out


def operation(op: str, k: tuple[float, ...], form: str = "fp32", entries: int = 0) -> object:
    return ctypes.byref(cpu.Operation(cpu.OPERATIONS[op], cpu.FORMATS[form], entries, k))
