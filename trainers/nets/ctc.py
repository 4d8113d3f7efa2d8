"""Recurrent recognisers of symbol strings and what decodes their answers (CTC).

Class 0 is the blank. Source: Graves et al., Connectionist temporal classification (2006).

Shape legend: B batch, T frames or steps, F bands, D units, K classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

BLANK = 0
STRIDE = 8
"""Frames per step of the answer."""


class Recogniser(nn.Module):
    """Three strided convolutions, one recurrent layer in both directions, a linear layer.

    Takes features x_BTF and the true lengths; returns (log p_BTK, its lengths), an eighth as
    long. What lies behind a recording's end never changes its answer.
    """

    def __init__(self, bands: int, classes: int, cell: str = "gru", units: int = 64) -> None:
        """Build it; ``cell`` is gru or lstm, ``units`` are those of each direction."""
        super().__init__()
        layer = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.first = nn.Conv1d(bands, units, 9, stride=2, padding=4)
        self.second = nn.Conv1d(units, units, 5, stride=2, padding=2)
        self.third = nn.Conv1d(units, units, 5, stride=2, padding=2)
        self.norm = nn.LayerNorm(units)
        self.forwards = layer(units, units, batch_first=True)
        self.backwards = layer(units, units, batch_first=True)
        self.head = nn.Linear(2 * units, classes)
        # Most steps are blank: who knows it from the start does not unlearn all else to say so.
        nn.init.constant_(self.head.bias[BLANK : BLANK + 1], 2.0)

    def forward(self, x_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (log p_BTK, lengths_B)."""
        x_BDT = x_BTF.transpose(1, 2)
        for layer in (self.first, self.second, self.third):
            lengths_B = (lengths_B + 1) // 2
            x_BDT = functional.relu(layer(x_BDT))
            x_BDT = x_BDT * _within(lengths_B, x_BDT.shape[2])[:, None]
        x_BTD = self.norm(x_BDT.transpose(1, 2))
        back_BTD = reverse(self.backwards(reverse(x_BTD, lengths_B))[0], lengths_B)
        both_BTD = torch.cat([self.forwards(x_BTD)[0], back_BTD], 2)
        return self.head(both_BTD).log_softmax(2), lengths_B


class LinearFrames(nn.Module):
    """A linear classifier of a quarter of a second around each step, which remembers nothing."""

    def __init__(self, bands: int, classes: int) -> None:
        """Build it."""
        super().__init__()
        self.linear = nn.Conv1d(bands, classes, 25, stride=STRIDE, padding=12)

    def forward(self, x_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (log p_BTK, lengths_B)."""
        logits_BKT = self.linear(x_BTF.transpose(1, 2))
        return logits_BKT.transpose(1, 2).log_softmax(2), (lengths_B + STRIDE - 1) // STRIDE


def reverse(x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """Return each sequence from its own end to its start; the padding stays where it is."""
    t_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    back_BT = torch.where(t_T < lengths_B[:, None], lengths_B[:, None] - 1 - t_T, t_T)
    return x_BTD.gather(1, back_BT[:, :, None].expand_as(x_BTD))


def greedy(logp_TK: Tensor) -> list[int]:
    """Return the symbols of the likeliest path: runs count once, blanks are left out."""
    path = torch.unique_consecutive(logp_TK.argmax(1)).tolist()
    return [symbol for symbol in path if symbol != BLANK]


def beam_search(logp_TK: Tensor, width: int) -> list[int]:
    """Return the likeliest string among the ``width`` best, summed over all of its paths.

    Source: Graves et al. (2006), prefix search; Hannun et al. (2014) for the beam.
    """
    # Of each prefix: the log probability of its paths that end in a blank, and in its last symbol.
    never = -math.inf
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}
    for logp_K in logp_TK.double().tolist():
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [never, never])
        for prefix, (blank, symbol) in beams.items():
            whole = _sum(blank, symbol)
            _add(grown[prefix], 0, whole + logp_K[BLANK])
            for k, logp in enumerate(logp_K):
                if k == BLANK or logp < -12:
                    continue
                repeats = prefix[-1:] == (k,)
                if repeats:
                    _add(grown[prefix], 1, symbol + logp)
                _add(grown[(*prefix, k)], 1, (blank if repeats else whole) + logp)
        best = sorted(grown.items(), key=lambda item: -_sum(*item[1]))[:width]
        beams = {prefix: (ends[0], ends[1]) for prefix, ends in best}
    return list(next(iter(beams)))


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return sequences of different lengths as one tensor with zeros behind them, and lengths."""
    lengths_B = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths_B


def _add(ends: list[float], place: int, logp: float) -> None:
    ends[place] = _sum(ends[place], logp)


def _sum(one: float, other: float) -> float:
    """Return the logarithm of a sum of probabilities, each given by its logarithm."""
    high = max(one, other)
    return high if high == -math.inf else high + math.log1p(math.exp(min(one, other) - high))


def _within(lengths_B: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]
