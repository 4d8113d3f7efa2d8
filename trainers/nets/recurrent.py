"""Recurrent classifiers: LSTM layers over a sequence, the last step decides.

Shape legend: B batch, H height (time), W width (inputs of a step), T time, D units, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn


def open_lstm(inputs: int, units: int) -> nn.LSTM:
    """Return an LSTM layer whose forget gates start open (Jozefowicz et al., 2015)."""
    lstm = nn.LSTM(inputs, units, batch_first=True)
    biases = dict(lstm.named_parameters())["bias_hh_l0"]
    nn.init.constant_(biases[units : 2 * units], 1.0)
    return lstm


class Recurrent(nn.Module):
    """One LSTM layer that returns its outputs of all steps.

    Takes x_BTD and returns y_BTD with ``units`` units. Source: Hochreiter and Schmidhuber (1997).
    """

    def __init__(self, inputs: int, units: int) -> None:
        """Build the layer."""
        super().__init__()
        self.lstm = open_lstm(inputs, units)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return y_BTD."""
        y_BTD: Tensor = self.lstm(x_BTD)[0]
        return y_BTD.contiguous()


class Last(nn.Module):
    """Return the last step of a sequence: y_BD of x_BTD."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return y_BD."""
        return x_BTD[:, -1]


class RowLSTM(nn.Module):
    """Classify grey images row by row, from top to bottom, with stacked LSTM layers.

    Takes x_B1HW in [0, 1] and returns logits_BK. With two layers of 64 units it has 57,994
    parameters for 28x28 images.
    """

    def __init__(
        self, layers: int = 2, units: int = 64, dropout: float = 0.5, side: int = 28,
        classes: int = 10,
    ) -> None:  # fmt: skip
        """Build the layers; ``dropout`` is the share of units left out before the last layer."""
        super().__init__()
        rows = nn.Flatten(1, 2)
        self.layers = nn.ModuleList(
            nn.Sequential(rows, Recurrent(side, units)) if n == 0 else Recurrent(units, units)
            for n in range(layers)
        )
        self.head = nn.Sequential(Last(), nn.Dropout(dropout), nn.Linear(units, classes))

    def units(self) -> list[nn.Module]:
        """Return the parts that follow one another: each layer, and the head."""
        return [*self.layers, self.head]

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Return logits_BK."""
        x = x_B1HW
        for unit in self.units():
            x = unit(x)
        return x
