"""Reader of PCM wav files: any rate, any channels, 8, 16, 24 or 32 bits.

Shape legend: S samples, C channels.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlplatform.errors import UsageError

LONGEST = 600
"""Seconds that a recording may have."""
EXTENSIBLE, PCM = b"\xfe\xff", b"\x01\x00"


def read_wav(path: Path, rate: int) -> NDArray[np.float32]:
    """Return the samples of a file within -1 and 1: channels averaged, at ``rate`` per second.

    Raises UsageError for a file that is no whole PCM wav file, is empty or is too long.
    """
    try:
        with wave.open(io.BytesIO(_plain(path.read_bytes()))) as file:
            channels, width, found, frames = file.getparams()[:4]
            raw = file.readframes(frames)
    except (OSError, EOFError, wave.Error) as error:
        raise _broken(
            path, f"cannot be read as wav ({str(error) or 'it ends too early'})"
        ) from error
    if width not in (1, 2, 3, 4) or found < 100 or channels < 1:
        raise _broken(path, f"has {8 * width} bits, {found} Hz and {channels} channels")
    if len(raw) != frames * channels * width:
        raise _broken(path, f"holds {len(raw)} bytes of sound where its header says {frames} "
                            f"samples of {channels * width} bytes")  # fmt: skip
    if not 0 < frames <= LONGEST * found:
        raise _broken(path, f"lasts {frames / found:g} s, allowed are up to {LONGEST}")
    mono_S = _values(raw, width).reshape(-1, channels).mean(1)
    return resample(mono_S, found, rate).astype(np.float32)


def resample(samples_S: NDArray[np.float64], old: int, new: int) -> NDArray[np.float64]:
    """Return a signal at another rate: its spectrum cut off or continued with zeros."""
    count = max(1, round(len(samples_S) * new / old))
    if old == new:
        return samples_S
    return np.fft.irfft(np.fft.rfft(samples_S), count) * (count / len(samples_S))


def _values(raw: bytes, width: int) -> NDArray[np.float64]:
    if width == 1:
        return (np.frombuffer(raw, np.uint8) - 128.0) / 128
    # Each value moves to the upper bytes of 32 bits: the sign takes care of itself.
    wide = np.zeros((len(raw) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(raw, np.uint8).reshape(-1, width)
    values: NDArray[np.float64] = wide.view("<i4")[:, 0] / 2.0**31
    return values


def _plain(raw: bytes) -> bytes:
    """Name PCM as older readers know it: Python's own before 3.12 knows no extensible header."""
    at = raw.find(b"fmt ") + 8
    if raw[at : at + 2] == EXTENSIBLE and raw[at + 24 : at + 26] == PCM:
        return raw[:at] + PCM + raw[at + 2 :]
    return raw


def _broken(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path} {what} - allowed: whole PCM wav files of 8, 16, 24 or 32 bits - "
        "convert it first, for example: ffmpeg -i IN -c:a pcm_s16le OUT.wav"
    )
