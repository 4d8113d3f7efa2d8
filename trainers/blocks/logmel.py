"""Log-mel features of sound, and the masks that are laid over them in training.

Shape legend: S samples, T frames (10 ms apart), F bands, N frequencies.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

FFT, WINDOW_S, HOP_S = 256, 0.025, 0.010
LOWEST = 60.0
MOST_BANDS, MOST_FRAMES = 4, 8
"""Bands and frames that a mask covers at most."""


def log_mel(samples_S: Tensor, rate: int, bands: int) -> Tensor:
    """Return x_TF: the log energy of each mel band, each band with mean 0 and variance 1.

    The mean over the recording takes the microphone and the loudness out. Source: Davis and
    Mermelstein (1980), without the cosine transform.
    """
    window, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    spectrum_NT = torch.stft(
        torch.nn.functional.pad(samples_S, (0, max(0, FFT - len(samples_S)))),
        FFT, hop, window, torch.hann_window(window), pad_mode="constant", return_complex=True,
    )  # fmt: skip
    energy_TF = spectrum_NT.abs().square().T @ mel_filters(rate, bands)
    # A floor 60 dB below the loudest: digital silence says no more than a quiet room.
    x_TF = (energy_TF + 1e-6 * energy_TF.max() + 1e-10).log()
    return (x_TF - x_TF.mean(0)) / (x_TF.std(0, unbiased=False) + 1e-3)


@lru_cache(maxsize=4)
def mel_filters(rate: int, bands: int) -> Tensor:
    """Return the weights_NF of triangular filters, evenly spaced in mel up to half the rate."""
    edges = torch.linspace(_mel(LOWEST), _mel(rate / 2), bands + 2, dtype=torch.float64)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    f_N1 = torch.linspace(0, rate / 2, FFT // 2 + 1, dtype=torch.float64)[:, None]
    rise_NF = (f_N1 - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    fall_NF = (hertz[2:] - f_N1) / (hertz[2:] - hertz[1:-1])
    return torch.minimum(rise_NF, fall_NF).clamp_min(0).float()


def mask(x_TF: Tensor, seed: int) -> Tensor:
    """Return the features with a run of bands and a run of frames blanked at random.

    Source: Park et al., SpecAugment (2019), without warping.
    """
    random = torch.Generator().manual_seed(seed)
    x_TF = x_TF.clone()
    for line_XY, most in ((x_TF.T, MOST_BANDS), (x_TF, MOST_FRAMES)):
        width = int(torch.randint(most + 1, (1,), generator=random))
        first = int(torch.randint(max(1, len(line_XY) - width), (1,), generator=random))
        line_XY[first : first + width] = 0
    return x_TF


def _mel(hertz: float) -> float:
    return 2595 * float(torch.log10(torch.tensor(1 + hertz / 700, dtype=torch.float64)))
