"""Spoken digit strings from a formant synthesiser: every recording is a function of its seed.

A word is a few phonemes; a phoneme is three formants that move from a start to an end, how much
voice and how much noise it has. The voice (pulses) and the noise are shaped by the formants in
short overlapping windows. Enough to be learned and to tell speakers apart; nobody's ears are meant.

Source: Klatt, Software for a cascade/parallel formant synthesizer (1980); formants of the vowels
from Peterson and Barney (1952).

Shape legend: S samples, T frames, F frequencies, P parameters of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dlplatform.seeds import derive

RATE = 8000
HOP, WINDOW, FFT = 32, 128, 256
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = 5
"""Digits of the longest string."""
BANDWIDTHS = (90.0, 120.0, 180.0)
LOUDNESS = (1.0, 0.55, 0.25)
Floats = NDArray[np.float64]

# Seconds, three formants at the start and at the end (Hz), voice, noise and where its middle is.
_SILENT = (500, 1500, 2500)
PHONEMES: dict[str, tuple[float, tuple[int, ...], tuple[int, ...], float, float, int]] = {
    "iy": (0.15, (300, 2250, 3000), (270, 2290, 3010), 1.0, 0.0, 0),
    "ih": (0.10, (390, 1990, 2550), (390, 1950, 2550), 1.0, 0.0, 0),
    "eh": (0.12, (530, 1840, 2480), (550, 1750, 2450), 1.0, 0.0, 0),
    "ah": (0.12, (640, 1190, 2390), (620, 1220, 2390), 1.0, 0.0, 0),
    "ao": (0.13, (570, 840, 2410), (550, 880, 2300), 1.0, 0.0, 0),
    "uw": (0.15, (320, 1000, 2240), (300, 850, 2240), 1.0, 0.0, 0),
    "ey": (0.16, (480, 1800, 2500), (330, 2200, 2700), 1.0, 0.0, 0),
    "ow": (0.16, (520, 980, 2400), (370, 780, 2300), 1.0, 0.0, 0),
    "ay": (0.19, (730, 1100, 2440), (350, 2050, 2600), 1.0, 0.0, 0),
    "w": (0.06, (300, 610, 2200), (400, 750, 2250), 0.8, 0.0, 0),
    "r": (0.07, (320, 1060, 1400), (400, 1150, 1600), 0.8, 0.0, 0),
    "n": (0.07, (280, 1350, 2400), (280, 1350, 2400), 0.45, 0.0, 0),
    "v": (0.06, (250, 1100, 2300), (280, 1150, 2300), 0.4, 0.12, 2600),
    "z": (0.08, (250, 1600, 2500), (280, 1600, 2500), 0.35, 0.45, 3600),
    "s": (0.11, _SILENT, _SILENT, 0.0, 0.7, 3700),
    "f": (0.09, _SILENT, _SILENT, 0.0, 0.22, 2700),
    "th": (0.08, _SILENT, _SILENT, 0.0, 0.16, 3100),
    "_": (0.05, _SILENT, _SILENT, 0.0, 0.0, 0),
    "t": (0.02, _SILENT, _SILENT, 0.0, 0.6, 3300),
    "k": (0.02, _SILENT, _SILENT, 0.0, 0.6, 1700),
}
PRONOUNCED = (
    *("z ih r ow", "w ah n", "_ t uw", "th r iy", "f ao r"),
    *("f ay v", "s ih _ k s", "s eh v ah n", "ey _ t", "n ay n"),
)
"""The phonemes of the ten words."""


@dataclass(frozen=True)
class Voice:
    """A speaker: pitch (Hz), how short the vocal tract is, how fast and how bright the speech."""

    pitch: float
    formants: float
    rate: float
    tilt: float


@dataclass(frozen=True, eq=False)
class Utterance:
    """A recording (mono samples within -1 and 1, at ``RATE``), its digits and its speaker."""

    samples_S: NDArray[np.float32]
    digits: tuple[int, ...]
    speaker: str


def speaker(seed: int, number: int) -> Voice:
    """Return a speaker: pitch 85 to 260 Hz, formants mostly higher where the pitch is."""
    random = np.random.default_rng(derive(seed, "speaker", number))
    high = random.random()
    return Voice(
        pitch=85 * (260 / 85) ** high,
        formants=float(0.92 + 0.2 * high + random.uniform(-0.06, 0.06)),
        rate=float(random.uniform(0.8, 1.25)),
        tilt=float(random.uniform(-0.5, 0.5)),
    )


@lru_cache(maxsize=8)
def utterances(seed: int, first: int, speakers: int, count: int) -> tuple[Utterance, ...]:
    """Return recordings of the speakers ``first`` to ``first + speakers - 1``, in turn.

    Each is a pure function of the seed and its place.
    """
    made = []
    for place in range(count):
        number = first + place % speakers
        random = np.random.default_rng(derive(seed, "utterance", number, place))
        digits = tuple(random.integers(10, size=random.integers(1, LONGEST + 1)).tolist())
        samples_S = speak(digits, speaker(seed, number), random)
        made.append(Utterance(samples_S, digits, f"voice {number}"))
    return tuple(made)


def speak(
    digits: tuple[int, ...], voice: Voice, random: np.random.Generator
) -> NDArray[np.float32]:
    """Return a recording of some digits: spoken by a voice, in a room with noise."""
    track_TP = _track(digits, voice, random)
    pulses_S, noise_S = _sources(len(track_TP), voice, random)
    f_F: Floats = np.fft.rfftfreq(FFT, 1 / RATE).astype(np.float64)
    tract_TF = track_TP[:, 3:4] * _resonances(track_TP[:, :3], f_F)
    hiss_TF = track_TP[:, 4:5] * np.exp(-(((f_F - track_TP[:, 5:6]) / 700) ** 2))
    spoken_S = _shape(pulses_S, tract_TF * (1 + f_F / 1000) ** voice.tilt)
    spoken_S += _shape(noise_S, hiss_TF)
    spoken_S *= random.uniform(0.2, 0.8) / max(float(np.abs(spoken_S).max()), 1e-9)
    loud = float(np.sqrt((spoken_S**2).mean()))
    hum = loud * 10 ** (-random.uniform(8, 25) / 20)
    return np.clip(spoken_S + hum * noise_S[::-1], -1, 1).astype(np.float32)


def _track(digits: tuple[int, ...], voice: Voice, random: np.random.Generator) -> Floats:
    """Return the parameters of all frames: three formants, voice, noise and its middle."""
    rows = [_pause(random.uniform(0.05, 0.2))]
    for digit in digits:
        slow = random.uniform(0.85, 1.2) / voice.rate
        colour = voice.formants * random.uniform(0.96, 1.04)
        rows += [_phoneme(name, slow, colour) for name in PRONOUNCED[digit].split()]
        rows.append(_pause(random.uniform(0.0, 0.12)))
    rows.append(_pause(random.uniform(0.05, 0.2)))
    track_TP = np.concatenate(rows)
    # The mouth moves slower (about 40 ms) than the voice starts and stops (about 12 ms).
    for column, frames in ((0, 9), (1, 9), (2, 9), (3, 3), (4, 3)):
        padded = np.pad(track_TP[:, column], frames // 2, mode="edge")
        track_TP[:, column] = np.convolve(padded, np.ones(frames) / frames, "valid")
    return track_TP


def _phoneme(name: str, slow: float, colour: float) -> Floats:
    seconds, start, end, voiced, noisy, middle = PHONEMES[name]
    frames = max(2, round(seconds * slow * RATE / HOP))
    along = np.linspace(0, 1, frames)[:, None]
    formants_T3 = colour * ((1 - along) * np.array(start) + along * np.array(end))
    rest_T3 = np.tile([voiced, noisy, middle], (frames, 1))
    return np.concatenate([formants_T3, rest_T3], 1)


def _pause(seconds: float) -> Floats:
    return np.tile([*_SILENT, 0.0, 0.0, 0.0], (round(seconds * RATE / HOP), 1))


def _sources(frames: int, voice: Voice, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Return glottal pulses with a falling, unsteady pitch, and white noise."""
    count = frames * HOP
    fall_S = np.linspace(1.12, 0.86, count)
    sway_S = 1 + 0.04 * np.sin(2 * np.pi * (4 * np.arange(count) / RATE + random.random()))
    turns_S = np.cumsum(voice.pitch * fall_S * sway_S) / RATE
    pulses_S = 8 * np.diff(np.floor(turns_S), prepend=0.0)
    return pulses_S, random.standard_normal(count)


def _resonances(formants_T3: Floats, f_F: Floats) -> Floats:
    away = [
        loud / np.sqrt(1 + ((f_F - formants_T3[:, n : n + 1]) / (wide / 2)) ** 2)
        for n, (loud, wide) in enumerate(zip(LOUDNESS, BANDWIDTHS, strict=True))
    ]
    whole_TF: Floats = np.sum(away, 0)
    return whole_TF


def _shape(source_S: Floats, gain_TF: Floats) -> Floats:
    """Filter a signal by a gain that changes from frame to frame (overlap and add)."""
    frames = len(gain_TF)
    padded = np.pad(source_S, (WINDOW // 2, WINDOW))
    cut_TS = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:frames]
    shaped_TS = np.fft.irfft(np.fft.rfft(cut_TS * np.hanning(WINDOW), FFT) * gain_TF)
    out_S = np.zeros(frames * HOP + FFT)
    for part in range(FFT // HOP):
        piece = shaped_TS[:, part * HOP : (part + 1) * HOP].reshape(-1)
        out_S[part * HOP : part * HOP + len(piece)] += piece
    return out_S[WINDOW // 2 : WINDOW // 2 + frames * HOP]
