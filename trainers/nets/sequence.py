"""Recurrent networks that say what comes next, in text or in a series of numbers.

Shape legend: B batch, T time, D inputs, U units, V characters.
Source of the truncation: Williams and Peng, An efficient gradient-based algorithm for on-line
training of recurrent network trajectories (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Next(nn.Module):
    """Say at each step what comes next: y_BTV of x, and the state to go on from.

    Args:
        first: turns a step into ``units`` values: an embedding of characters, or a linear layer.
        cell: rnn (tanh), gru or lstm.
        units: U of each layer.
        outputs: V.
        layers: of the cells.
    """

    def __init__(
        self, first: nn.Module, cell: str, units: int, outputs: int, layers: int = 1
    ) -> None:
        super().__init__()
        self.first = first
        self.cells = CELLS[cell](units, units, layers, batch_first=True)
        self.out = nn.Linear(units, outputs)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return y_BTV and the state after the last step."""
        y_BTU, state = self.cells(self.first(x), state)
        return self.out(y_BTU), state


def truncated_loss(
    net: nn.Module, series: Tensor, length: int, criterion: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the mean loss over a series (B, T + 1, ...) of what follows each of T steps.

    The state goes on from one segment of ``length`` steps to the next, its gradient does not.
    """
    steps = series.shape[1] - 1
    state, total = None, series.new_zeros((), dtype=torch.float32)
    for begin in range(0, steps, length):
        end = min(begin + length, steps)
        y_BTV, state = net(series[:, begin:end], state)
        total = total + criterion(y_BTV, series[:, begin + 1 : end + 1]) * ((end - begin) / steps)
        state = (
            tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        )
    return total


@torch.no_grad()
def generate(
    net: nn.Module, tokens_BT: Tensor, count: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return ``count`` further tokens (B, count); ``choose`` picks (B,) of logits_BV on the CPU."""
    state, said = None, []
    for _ in range(count):
        logits_BTV, state = net(tokens_BT, state)
        tokens_BT = choose(logits_BTV[:, -1].cpu())[:, None].to(tokens_BT.device)
        said.append(tokens_BT)
    return torch.cat(said, 1)


def chooser(seed: int, temperature: float, special: int = 0) -> Callable[[Tensor], Tensor]:
    """Return a choice among logits_BV: at random by their chances, or (temperature 0) the best.

    The first ``special`` tokens are never chosen.
    """
    random = torch.Generator().manual_seed(seed)

    def choose(logits_BV: Tensor) -> Tensor:
        rest_BV = logits_BV[:, special:]
        if temperature == 0:
            return special + rest_BV.argmax(1)
        return (
            special
            + torch.multinomial((rest_BV / temperature).softmax(1), 1, generator=random)[:, 0]
        )

    return choose
