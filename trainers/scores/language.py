"""How well text is foretold, by a network that writes and by the simplest of methods.

Shape legend: B batch, T time, V characters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unigram_entropy(tokens: Tensor, asked_BT: Tensor, count: int) -> float:
    """Return the mean negative log-likelihood (nats) by the frequencies of single characters.

    ``asked_BT`` includes the first character of each line, which nobody is asked for.
    """
    often_V = torch.bincount(tokens, minlength=count) + 1.0
    return float(-(often_V / often_V.sum()).log()[asked_BT[:, 1:]].mean())


def bigram_entropy(tokens: Tensor, asked_BT: Tensor, count: int) -> float:
    """Return the mean negative log-likelihood (nats) by the frequencies of pairs."""
    pairs = torch.bincount(tokens[:-1] * count + tokens[1:], minlength=count**2) + 0.1
    chance_VV = pairs.view(count, count) / pairs.view(count, count).sum(1, keepdim=True)
    return float(-chance_VV[asked_BT[:, :-1], asked_BT[:, 1:]].log().mean())


def foretold(likeliest_BT: Tensor, tokens_BT: Tensor, phrases: list[Tensor]) -> float:
    """Return how often the first character of a phrase was the likeliest, where the phrase stands.

    Args:
        likeliest_BT: what a model holds for likeliest after each of tokens_BT.
        tokens_BT: the text.
        phrases: the tokens of each phrase; nan when none of them stands anywhere.
    """
    right = []
    for phrase in phrases:
        found_BT = (tokens_BT.unfold(1, len(phrase), 1) == phrase).all(2)[:, 1:]
        right.append(likeliest_BT[:, : found_BT.shape[1]][found_BT] == phrase[0])
    return float(torch.cat(right).double().mean())
