"""Networks that join many sensors, early or late, and say posture and activity.

Shape legend: B batch, N windows, T time, C channels, D units, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers.blocks.linear import fit_linear

MODALITIES = {"acc": (0, 3), "gyro": (3, 6), "mag": (6, 9), "alt": (9, 10), "time": (10, 12)}
"""First and last signal of each modality, after ``signals``; their order is that of the input."""
WIDTHS = {"acc": (32, 64), "gyro": (32, 64), "mag": (32, 64), "alt": (16, 16), "time": (8, 8)}


class Answers(NamedTuple):
    """The logits of both heads."""

    activity_BK: Tensor
    posture_BK: Tensor


def signals(x_BCT: Tensor) -> Tensor:
    """Return 12 signals of the 11 channels: height as its change, the hour as sine and cosine."""
    change_B1T = x_BCT[:, 9:10].diff(dim=2, prepend=x_BCT[:, 9:10, :1])
    turn_B1T = x_BCT[:, 10:11] * (2 * torch.pi / 24)
    return torch.cat([x_BCT[:, :9], change_B1T, turn_B1T.sin(), turn_B1T.cos()], 1)


def left_out(x_BCT: Tensor, modality: str) -> Tensor:
    """Return the windows as if a modality of ``MODALITIES`` had not been measured."""
    first, last = MODALITIES[modality]
    x_BCT = x_BCT.clone()
    x_BCT[:, first : min(last, 11)] = torch.nan
    return x_BCT


class SensorNet(nn.Module):
    """Convolutions over each modality, joined (late) for an LSTM; or over all at once (early).

    Takes windows x_BCT of 11 channels; NaN is what was not measured. In training each modality
    of each window is left out with a small probability. Source: Ordonez and Roggen, DeepConvLSTM
    (2016); modality dropout from Neverova et al., ModDrop (2016).
    """

    mean_C1: Tensor
    spread_C1: Tensor

    def __init__(self, heads: tuple[int, int], early: bool, units: int, dropout: float) -> None:
        """Build it for a number of activities and of postures."""
        super().__init__()
        self.dropout = dropout
        parts = {"all": (0, 12)} if early else MODALITIES
        self.parts = list(parts.values())
        self.branches = nn.ModuleDict(
            {name: _branch(last - first, WIDTHS.get(name, (48, 96)))
             for name, (first, last) in parts.items()}
        )  # fmt: skip
        joined = sum(WIDTHS.get(name, (48, 96))[1] for name in parts)
        self.lstm = nn.LSTM(joined, units, batch_first=True)
        self.activity, self.posture = (nn.Linear(units, count) for count in heads)
        self.register_buffer("mean_C1", torch.zeros(12, 1))
        self.register_buffer("spread_C1", torch.ones(12, 1))

    def normalise(self, x_BCT: Tensor) -> None:
        """Take mean and spread of each signal from training windows; what is all NaN stays."""
        rows_C = signals(x_BCT).transpose(0, 1).flatten(1)
        mean_C1 = rows_C.nanmean(1, keepdim=True)
        spread_C1 = (rows_C - mean_C1).square().nanmean(1, keepdim=True).sqrt()
        self.mean_C1.copy_(mean_C1.nan_to_num(0.0))
        self.spread_C1.copy_(spread_C1.nan_to_num(1.0).clamp_min(1e-6))

    def forward(self, x_BCT: Tensor) -> Answers:
        """Return the logits of activity and posture."""
        x_BCT = ((signals(x_BCT) - self.mean_C1) / self.spread_C1).nan_to_num(0.0)
        if self.training and self.dropout:
            x_BCT = x_BCT * self._kept(len(x_BCT), x_BCT)
        parts = zip(self.branches.values(), self.parts, strict=True)
        joined_BDT = torch.cat([net(x_BCT[:, first:last]) for net, (first, last) in parts], 1)
        last_BD = self.lstm(joined_BDT.transpose(1, 2))[0][:, -1]
        return Answers(self.activity(last_BD), self.posture(last_BD))

    def _kept(self, count: int, like: Tensor) -> Tensor:
        """Return a factor for each signal: 0 where its modality is left out."""
        kept = torch.rand(count, len(MODALITIES), device=like.device) >= self.dropout
        columns = [kept[:, n : n + 1].expand(-1, last - first)
                   for n, (first, last) in enumerate(MODALITIES.values())]  # fmt: skip
        return torch.cat(columns, 1)[:, :, None].to(like.dtype)


def _branch(inputs: int, widths: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(inputs, widths[0], 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(widths[0], widths[1], 5, stride=2, padding=2),
        nn.ReLU(),
    )


def linear(x_NCT: Tensor, labels_N: Tensor, classes: int, asked_NCT: Tensor) -> Tensor:
    """Return the answers of a linear classifier of each signal's mean and spread in a window."""
    rows_ND, asked_ND = _features(x_NCT), _features(asked_NCT)
    mean_D, spread_D = rows_ND.mean(0), rows_ND.std(0) + 1e-6
    model = fit_linear((rows_ND - mean_D) / spread_D, labels_N, classes)
    answers_N: Tensor = model((asked_ND - mean_D) / spread_D).argmax(1)
    return answers_N


def _features(x_NCT: Tensor) -> Tensor:
    x_NCT = signals(x_NCT).nan_to_num(0.0)
    return torch.cat([x_NCT.mean(2), x_NCT.std(2)], 1)
