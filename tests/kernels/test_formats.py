"""Payload formats against their definition in numpy; error feedback; hostile payloads."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import ODD, SEEDS, SIZES, at, packed, parts, same, unaligned, unpacked, values

from kernels import cpu, packing

LOSSY = ["fp16", "bf16", "int8", "topk"]
FORMS = ["fp32", *LOSSY]


def some(rng: np.random.Generator, form: str, size: int) -> int:
    return int(rng.integers(0, size + 1)) if form == "topk" else 0


def identical(ours: np.ndarray, theirs: np.ndarray, form: str, size: int, entries: int) -> None:
    """The same bytes, or the same values where one NaN has other bits than another."""
    assert len(ours) == len(theirs)
    if not np.array_equal(ours, theirs):
        same(packing.unpack(form, ours, size, entries), packing.unpack(form, theirs, size, entries))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, size=SIZES, shift=st.integers(0, 15), odd=st.booleans())
def test_a_payload_is_that_of_its_definition(
    form: str, seed: int, size: int, shift: int, odd: bool
) -> None:
    rng = np.random.default_rng(seed)
    v = unaligned(values(rng, size, odd), shift)
    entries = some(rng, form, size)
    with np.errstate(all="ignore"):
        expected = packing.pack(form, v, entries)
        payload = packed(form, v, entries)
        identical(payload, expected, form, size, entries)
        assert cpu.check_payload(cpu.FORMATS[form], at(payload), size, entries) == 0
        meant = packing.unpack(form, payload, size, entries)
    payload, out = unaligned(payload, shift), np.full(size, 9, np.float32)
    for start, count in parts(rng, size):
        code = cpu.FORMATS[form]
        cpu.unpack(code, at(payload), at(out, start), start, count, entries)
    same(out, meant)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, size=SIZES, odd=st.booleans())
def test_the_residual_is_what_packing_lost(form: str, seed: int, size: int, odd: bool) -> None:
    rng = np.random.default_rng(seed)
    x, residual = values(rng, size, odd), unaligned(values(rng, size, False), 3)
    entries = some(rng, form, size)
    with np.errstate(all="ignore"):
        expected, left = packing.pack_with_residual(form, x, residual.copy(), entries)
    payload = np.empty(cpu.payload_bytes(cpu.FORMATS[form], size, entries), np.uint8)
    cpu.pack(cpu.FORMATS[form], at(x), at(residual), at(payload), size, entries)
    identical(payload, expected, form, size, entries)
    same(residual, left)


@pytest.mark.parametrize("form", LOSSY)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 3000))
def test_error_feedback_loses_nothing_for_good(form: str, seed: int, size: int) -> None:
    """What was sent and what is left add up to what was put in."""
    rng = np.random.default_rng(seed)
    entries = max(1, size // 20) if form == "topk" else 0
    residual = np.zeros(size, np.float32)
    put, sent = np.zeros(size), np.zeros(size)
    for _ in range(12):
        x = rng.standard_normal(size).astype(np.float32)
        payload = np.empty(cpu.payload_bytes(cpu.FORMATS[form], size, entries), np.uint8)
        cpu.pack(cpu.FORMATS[form], at(x), at(residual), at(payload), size, entries)
        put += x
        sent += unpacked(form, payload, size, entries)
    np.testing.assert_allclose(sent + residual, put, rtol=0, atol=2e-5)


# -- each format ---------------------------------------------------------------------------


def test_every_fp16_and_bf16_survives_the_way_there_and_back() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for form in ("fp16", "bf16"):
        wide = unpacked(form, bits.view(np.uint8), len(bits))
        with np.errstate(all="ignore"):
            same(wide, packing.unpack(form, bits.view(np.uint8), len(bits)))
        again = packed(form, wide).view(np.uint16)
        finite = ~np.isnan(wide)
        assert np.array_equal(again[finite], bits[finite])
        assert np.isnan(unpacked(form, packed(form, wide[~finite]), (~finite).sum())).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300))
def test_any_bits_round_as_in_numpy(bits: list[int]) -> None:
    v = np.array(bits, np.uint32).view(np.float32)
    for form in ("fp16", "bf16"):
        with np.errstate(all="ignore"):
            expected = packing.unpack(form, packing.pack(form, v), len(v))
        same(unpacked(form, packed(form, v), len(v)), expected)


@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_halves_between_two_numbers_round_to_even(form: str) -> None:
    """Every number half way between two neighbours, and its neighbours in fp32."""
    wide = unpacked(form, np.arange(0x7C00, dtype=np.uint16).view(np.uint8), 0x7C00)
    middle = ((wide[:-1].astype(np.float64) + wide[1:]) / 2).astype(np.float32)
    for v in (middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, ODD[1])):
        assert np.array_equal(packed(form, v), packing.pack(form, v))


def test_what_is_too_large_for_fp16_becomes_infinite() -> None:
    v = np.float32([65504, 65519.996, 65520, 65535, 65536, 70000, 131071, 131072, 3e38])
    for sign in (1, -1):
        out = unpacked("fp16", packed("fp16", sign * v), len(v))
        assert np.array_equal(out, sign * np.float32([65504, 65504] + [np.inf] * 7))


def test_eight_bits_are_within_half_a_step() -> None:
    v = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    error = np.abs(unpacked("int8", packed("int8", v), 1000) - v)
    for block in np.split(np.arange(1000), [256, 512, 768]):
        assert error[block].max() <= np.abs(v[block]).max() / 127 * 0.5000001


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_cannot_hide_in_its_block(odd: float) -> None:
    v = np.ones(600, np.float32)
    v[300] = odd
    out = unpacked("int8", packed("int8", v), 600)
    assert np.isnan(out[256:512]).all()
    assert np.array_equal(out[:256], v[:256])
    assert np.array_equal(out[512:], v[512:])


def test_tiny_blocks_do_not_divide_by_zero() -> None:
    for most in (0.0, 1e-45, 1e-43, 1e-38):
        v = np.full(100, most, np.float32)
        out = unpacked("int8", packed("int8", v), 100)
        assert np.isfinite(out).all()
        assert (np.abs(out - v) <= max(most, 1e-45)).all()


def test_of_equal_magnitudes_the_first_are_sent() -> None:
    v = np.float32([1, -2, 2, 0, -2, 2, 1])
    payload = packed("topk", v, 3)
    assert payload[:12].view(np.uint32).tolist() == [1, 2, 4]
    assert payload[12:].view(np.float32).tolist() == [-2, 2, -2]


@pytest.mark.parametrize("entries", [0, 1, 7, 5000, 65537])
def test_topk_sends_the_largest_exactly(entries: int) -> None:
    rng = np.random.default_rng(entries)
    v = rng.standard_normal(65537).astype(np.float32).round(2)  # many ties
    out = unpacked("topk", packed("topk", v, entries), len(v), entries)
    assert np.count_nonzero(out) == entries - np.count_nonzero(v[out == 0] == 0) * (
        entries == len(v)
    )
    left = np.where(out == 0, v, 0)
    assert np.array_equal(out + left, v)
    if 0 < entries < len(v):
        assert np.abs(out[out != 0]).min() >= np.abs(left).max()


# -- what must be refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "positions", [[1, 1], [2, 1], [0, 100], [2**32 - 1], list(range(101)), [5, 4, 200]]
)
def test_a_hostile_payload_is_refused(positions: list[int]) -> None:
    entries = len(positions)
    payload = np.array(positions + [0] * entries, np.uint32)
    assert cpu.check_payload(cpu.FORMATS["topk"], at(payload), 100, entries) == -errno.EINVAL


@pytest.mark.parametrize("positions", [[], [0], [99], [0, 1, 99], list(range(100))])
def test_an_honest_payload_passes(positions: list[int]) -> None:
    payload = np.array(positions * 2, np.uint32)
    assert cpu.check_payload(cpu.FORMATS["topk"], at(payload), 100, len(positions)) == 0


def test_what_cannot_be_packed_is_refused() -> None:
    v, out = np.zeros(4, np.float32), np.zeros(64, np.uint8)
    for form, entries in ((-1, 0), (5, 0), (cpu.FORMATS["topk"], 5)):
        assert cpu.pack(form, at(v), None, at(out), 4, entries) == -errno.EINVAL
    assert cpu.check_payload(5, at(out), 4, 0) == -errno.EINVAL
    assert cpu.payload_bytes(5, 4, 0) == 0
    assert not out.any()


def test_sizes_of_payloads() -> None:
    size = {form: cpu.payload_bytes(cpu.FORMATS[form], 257, 3) for form in FORMS}
    assert size == {"fp32": 1028, "fp16": 514, "bf16": 514, "int8": 265, "topk": 24}
