"""What classifiers share: logits without side effects, and scores.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


def logits(net: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Return logits_BK in eval mode without gradients, and leave the mode as it was."""
    mode = net.training
    net.eval()
    try:
        with torch.no_grad():
            answer_BK: Tensor = net(x_BCHW.to(next(net.parameters()).device))
        return answer_BK.float()
    finally:
        net.train(mode)


def scores(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the accuracy and the mean cross-entropy over batches of (x_BCHW, labels)."""
    right, loss, samples = 0, 0.0, 0
    for x_BCHW, labels in batches:
        answer_BK = logits(net, x_BCHW)
        labels = labels.to(answer_BK.device)
        right += int((answer_BK.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(answer_BK, labels, reduction="sum"))
        samples += len(labels)
    return {"accuracy": right / samples, "loss": loss / samples}
