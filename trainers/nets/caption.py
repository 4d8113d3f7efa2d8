"""Neural Image Caption: a convolutional network looks, an LSTM tells.

Shape legend: B batch, C channels, H height, W width, F features, T time, R references of a
picture, N sentences, V words, K beams, U units.
Source: Vinyals et al., Show and Tell (2015).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.blocks.vocabulary import END, PAD, START
from trainers.nets.convnet import MaxPool2d, he_init
from trainers.nets.recurrent import open_lstm

State = tuple[Tensor, Tensor]


class Looker(nn.Module):
    """Convolutions, each followed by a maximum over 2 x 2, and a linear layer: features_BF.

    Strides for the maxima, or other norms, need many times the steps to tell shapes apart.

    Args:
        side: height and width of the pictures, 16 or more.
        width: channels of the first convolution; each further one has twice as many, up to 512.
        features: F.
    """

    def __init__(self, side: int, width: int, features: int) -> None:
        super().__init__()
        steps = max(2, round(math.log2(side / 4)))
        channels = [3, *(min(width * 2**step, 512) for step in range(steps))]
        layers: list[nn.Module] = []
        for before, after in [*itertools.pairwise(channels), (channels[-1], channels[-1])]:
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU(), MaxPool2d(2)]
        layers.pop()  # none after the last one
        flat = channels[-1] * (side >> steps) ** 2
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, features), nn.ReLU())
        he_init(self.net)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features_BF."""
        features_BF: Tensor = self.net(x_BCHW - 0.4)
        return features_BF


class Teller(nn.Module):
    """An LSTM that sees the picture once, before the first word, then only words.

    Args:
        features: F of the picture.
        words: V.
        units: of the LSTM, and of the embedding of words.
        init: ``input``: the picture is the first input (the paper); ``state``: it is the first
            state, and no input.
        dropout: share of the inputs and outputs left out in training.
    """

    def __init__(
        self, features: int, words: int, units: int, init: str = "input", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.init = init
        # As loud as a word: else the picture is not heard among them for long.
        seen = units if init == "input" else 2 * units
        self.look = nn.Sequential(nn.Linear(features, seen), nn.LayerNorm(seen))
        self.embed = nn.Embedding(words, units)
        self.lstm = open_lstm(units, units)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(units, words)

    def begin(self, features_BF: Tensor) -> State:
        """Return the state of the LSTM after it saw the pictures."""
        seen = self.look(features_BF)
        if self.init == "input":
            state: State = self.lstm(seen[:, None])[1]
            return state
        hidden, cell = seen.chunk(2, 1)
        return hidden.tanh()[None].contiguous(), cell[None].contiguous()

    def step(self, tokens_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits_BTV of what follows each word, and the state after the last one."""
        y_BTU, state = self.lstm(self.drop(self.embed(tokens_BT)), state)
        return self.out(self.drop(y_BTU)), state

    def forward(self, features_BF: Tensor, tokens_BT: Tensor) -> Tensor:
        """Return logits_BTV of the word after each word of a caption that is given."""
        logits_BTV: Tensor = self.step(tokens_BT, self.begin(features_BF))[0]
        return logits_BTV


class Agreement(nn.Module):
    """Fuse a photo and words: logits_B2 of whether they agree (multi-modal in the wide sense).

    Args:
        side: height and width of the pictures.
        width: channels of the first convolution.
        features: of the picture, and of the words.
        words: V.
    """

    def __init__(self, side: int, width: int, features: int, words: int) -> None:
        super().__init__()
        self.look = Looker(side, width, features)
        self.read = nn.EmbeddingBag(words, features)
        # Products of what both say, beside either alone: agreement is no sum of the two.
        self.judge = nn.Sequential(
            nn.Linear(3 * features, features), nn.ReLU(), nn.Linear(features, 2)
        )

    def forward(self, x_BCHW: Tensor, tokens_BT: Tensor) -> Tensor:
        """Return logits_B2: against and for."""
        seen, said = self.look(x_BCHW), self.read(tokens_BT)
        logits_B2: Tensor = self.judge(torch.cat([seen, said, seen * said], 1))
        return logits_B2


def caption_loss(teller: Teller, features_BF: Tensor, tokens_BRT: Tensor) -> Tensor:
    """Return the negative log-likelihood of a whole sentence, on average; padding does not count.

    A mean over sentences, not words: that of two batches is then the mean of theirs.
    """
    tokens_NT = tokens_BRT.flatten(0, 1)
    seen_NF = features_BF.repeat_interleave(tokens_BRT.shape[1], 0)
    logits_NTV = teller(seen_NF, tokens_NT[:, :-1])
    total = functional.cross_entropy(
        logits_NTV.flatten(0, 1), tokens_NT[:, 1:].flatten(), ignore_index=PAD, reduction="sum"
    )
    return total / (tokens_NT[:, 0] != PAD).sum()


@torch.no_grad()
def beam_search(
    teller: Teller, features_BF: Tensor, beams: int = 1, length: int = 20
) -> tuple[Tensor, Tensor]:
    """Return the likeliest captions found as tokens_BT and their log-probabilities (B,).

    Keeps the ``beams`` likeliest beginnings of each picture's caption; with 1 it is greedy. A
    caption ends with END, or unfinished after ``length`` words.
    """
    batch = len(features_BF)
    state = teller.begin(features_BF.repeat_interleave(beams, 0))
    tokens_BKT = torch.full((batch, beams, 1), START, device=features_BF.device)
    # All beams start alike: but for the first one they must not be chosen.
    score_BK = features_BF.new_full((batch, beams), -math.inf)
    score_BK[:, 0] = 0
    first_B1 = torch.arange(batch, device=features_BF.device)[:, None] * beams
    for _ in range(length):
        ended_BK = (tokens_BKT == END).any(2)
        if bool(ended_BK.all()):
            break
        logits, state = teller.step(tokens_BKT[:, :, -1:].flatten(0, 1), state)
        more_BKV = logits[:, 0].log_softmax(1).view(batch, beams, -1)
        words = more_BKV.shape[2]
        # An ended caption goes on with padding only, at no cost.
        more_BKV[ended_BK] = -math.inf
        more_BKV[..., PAD] = torch.where(ended_BK, 0.0, -math.inf)
        best = (score_BK[..., None] + more_BKV).flatten(1).topk(beams, 1)
        score_BK, parent_BK, word_BK = best.values, best.indices // words, best.indices % words
        kept_BKT = tokens_BKT.gather(1, parent_BK[..., None].expand_as(tokens_BKT))
        tokens_BKT = torch.cat([kept_BKT, word_BK[..., None]], 2)
        rows = (first_B1 + parent_BK).flatten()
        state = (state[0][:, rows], state[1][:, rows])
    return tokens_BKT[:, 0], score_BK[:, 0]
