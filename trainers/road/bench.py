"""The bench of figure 8: one context module between two 1x1 convolutions, counted and weighed.

Nothing is computed where only sizes are asked for: the network runs on tensors without values.

Source: KR 10-2023-0017679, paragraphs 153 to 175 and figure 8.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.nets.deformable import CORNERS, deformables
from trainers.road.contexts import context_module

CHANNELS, CLASSES = 384, 19
SIDES = {16: 48, 8: 96}
"""Side of the square input by output stride: a crop of 768 pixels."""
MODULES = ("conv", "aspp", "spp", "df", "sdf", "dspp")
MIB = 2**20


@dataclass(frozen=True)
class Published:
    """A row of figure 8: MiB in training and inference (whole offsets), 2**30 multiplications."""

    train: int
    inference: int
    integer: int | None
    multiplications: float


FIGURE_8 = {
    (16, "conv"): Published(977, 901, None, 2.8),
    (16, "aspp"): Published(1151, 1101, None, 2.9),
    (16, "spp"): Published(1023, 979, None, 1.6),
    (16, "df"): Published(1945, 1813, None, 3.0),
    (16, "sdf"): Published(1009, 1001, 923, 0.5),
    (16, "dspp"): Published(1099, 1075, 991, 1.2),
    (8, "conv"): Published(1135, 941, None, 11.4),
    (8, "aspp"): Published(1707, 1555, None, 11.5),
    (8, "spp"): Published(1409, 1265, None, 6.3),
    (8, "df"): Published(4875, 4623, None, 11.9),
    (8, "sdf"): Published(1457, 1353, 1045, 1.9),
    (8, "dspp"): Published(1957, 1783, 1415, 6.3),
}


def bench_network(name: str, stride: int) -> nn.Sequential:
    """Return the network of figure 8: 3 to 384 channels, the bare module, 384 to 19 classes."""
    module = bare(context_module(name, CHANNELS, stride))
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), module, nn.Conv2d(CHANNELS, CLASSES, 1))


def train_once(net: nn.Module, x_B3HW: Tensor, labels_BHW: Tensor, lr: float = 0.01) -> float:
    """Take one step of SGD on the mean cross-entropy of all pixels; return the loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    loss = nn.functional.cross_entropy(net.train()(x_B3HW), labels_BHW)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def bare(module: nn.Module) -> nn.Module:
    """Return the module without normalisations and activations, as figure 8 counts it."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.ReLU | nn.PReLU):
            setattr(module, name, nn.Identity())
        else:
            bare(child)
    return module


def count_multiplications(module: nn.Module, height: int, width: int, channels: int = 384) -> int:
    """Return the multiplications of a module's convolutions for one input, counted exactly.

    As in figure 8: without biases, normalisations, bilinear readings and poolings.
    """
    counts: list[int] = []

    def counted(layer: Any, _: object, y_BOHW: Tensor) -> None:
        counts.append(y_BOHW.numel() * layer.weight[0].numel())

    valueless = copy.deepcopy(module).to("meta")
    for layer in valueless.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(counted)
    valueless(torch.empty(1, channels, height, width, device="meta"))
    return sum(counts)


class Memory(NamedTuple):
    """Bytes of a network's values for one input; weights do not count."""

    training: int
    """Kept for the backward pass."""
    inference: int
    """There at the same time, at most."""


def weigh(net: nn.Module, side: int, fused: bool = True, channels: int = 3) -> Memory:
    """Return the bytes that a network needs for one square input, in training and in eval mode.

    Unless fused, the three more corners of each bilinear reading count, too: the patent's sampler
    stores them (paragraphs 83 to 87), ours does not.
    """
    net = copy.deepcopy(net).to("meta")
    x_BCHW = torch.empty(1, channels, side, side, device="meta")
    known = {_storage(p) for p in net.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}
    corners: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            saved[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    def cornered(_: nn.Module, cols: tuple[Tensor]) -> None:
        corners.append((CORNERS - 1) * cols[0].nbytes)

    for feature in {layer.feature for layer in deformables(net) if layer.offsets == "real"}:
        feature.register_forward_pre_hook(cornered)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net.train()(x_BCHW)
    training = sum(storage.nbytes() for storage in saved.values())
    more, most = (0, 0) if fused else (sum(corners), max(corners, default=0))
    with torch.no_grad(), _Peak() as peak:
        net.eval()(x_BCHW)
    return Memory(training + more, peak.most + most)


def weigh_on_gpu(net: nn.Module, side: int, batch: int = 8) -> Memory:
    """Return the measured peak bytes on this machine's GPU: one step of SGD, one inference."""
    device = torch.device("cuda")
    net = copy.deepcopy(net).to(device)
    x_BCHW = torch.randn(batch, 3, side, side, device=device)
    labels_BHW = torch.randint(CLASSES, (batch, side, side), device=device)
    peaks = []
    for run in (lambda: train_once(net, x_BCHW, labels_BHW), lambda: infer(net, x_BCHW)):
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks.append(torch.cuda.max_memory_allocated())
    return Memory(*peaks)


@torch.no_grad()
def infer(net: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Return the class of every pixel."""
    answer: Tensor = net.eval()(x_BCHW).argmax(1)
    return answer


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations made and that are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        alive = self._alive.items()
        self._alive = {ref: size for ref, size in alive if not ref.expired()}  # type: ignore[no-untyped-call]
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[ref] = storage.nbytes()
        self.most = max(self.most, sum(self._alive.values()))
        return result
