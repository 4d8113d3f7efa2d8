"""How a vector is written in fewer bytes, in plain numpy: the definition of every payload format.

fp16 and bf16 round to the nearest, ties to even. int8 has one scale per block of 256. topk
keeps the largest elements with their positions. What packing loses stays in a residual that
is added to the next vector (error feedback, arXiv:1901.09847).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Bytes = NDArray[np.uint8]
BLOCK8 = 256


def pack(form: str, v: Vector, entries: int = 0) -> Bytes:
    """Return the payload of a vector."""
    if form == "fp32":
        return np.frombuffer(v.tobytes(), np.uint8)
    if form == "fp16":
        return np.frombuffer(v.astype(np.float16).tobytes(), np.uint8)
    if form == "bf16":
        return np.frombuffer(bf16_bits(v).tobytes(), np.uint8)
    if form == "int8":
        blocks = [_pack_block(v[i : i + BLOCK8]) for i in range(0, len(v), BLOCK8)]
        return np.frombuffer(b"".join(blocks), np.uint8)
    positions = largest(v, entries)
    return np.frombuffer(positions.tobytes() + v[positions].tobytes(), np.uint8)


def unpack(form: str, payload: Bytes, n: int, entries: int = 0) -> Vector:
    """Return the vector of n elements that a payload stands for."""
    if form == "fp32":
        return payload.view(np.float32).copy()
    if form == "fp16":
        return payload.view(np.float16).astype(np.float32)
    if form == "bf16":
        return (payload.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    out = np.zeros(n, np.float32)
    if form == "int8":
        for i in range(0, n, BLOCK8):
            block = payload[i // BLOCK8 * (BLOCK8 + 4) :][: min(BLOCK8, n - i) + 4]
            scale = np.frombuffer(block[:4].tobytes(), np.float32)[0]
            out[i : i + BLOCK8] = scale * block[4:].view(np.int8).astype(np.float32)
        return out
    values = payload[4 * entries :].copy().view(np.float32)
    out[payload[: 4 * entries].copy().view(np.uint32)] = values
    return out


def pack_with_residual(
    form: str, x: Vector, residual: Vector, entries: int = 0
) -> tuple[Bytes, Vector]:
    """Return the payload of x + residual, and what it lost: the residual of the next call."""
    v = x + residual
    payload = pack(form, v, entries)
    return payload, v - unpack(form, payload, len(v), entries)


def bf16_bits(v: Vector) -> NDArray[np.uint16]:
    """Round to the upper half of fp32; what is not a number stays so."""
    bits = v.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(v), bits >> 16 | 0x40, rounded).astype(np.uint16)


def largest(v: Vector, entries: int) -> NDArray[np.uint32]:
    """Return the ascending positions of the largest magnitudes; of equal ones the first.

    NaN counts as larger than anything: it must not stay hidden in a residual.
    """
    magnitudes = (v.view(np.uint32) & 0x7FFFFFFF).astype(np.int64)
    order = np.argsort(-magnitudes, kind="stable")[:entries]
    return np.sort(order).astype(np.uint32)


def _pack_block(v: Vector) -> bytes:
    """Write max|v| / 127 and the multiples of it; a block that is not finite reads as NaN."""
    scale = np.abs(v).max() / np.float32(127) if np.isfinite(v).all() else np.float32(np.nan)
    levels = np.zeros(len(v), np.int8)
    if scale > 0:
        levels = np.rint(np.clip(v / scale, -127, 127)).astype(np.int8)
    return np.float32(scale).tobytes() + levels.tobytes()
