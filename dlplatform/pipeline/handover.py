"""Handover: a stage's weights and moments on their way to the chief, through the boxes.

The first pipeline's workers all train the same minibatches, so each knows from the numbers when
the chief evaluates, and gives what it has after exactly that minibatch; nobody waits for the
chief. One buffer carries one handover and is freed when it has been taken.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from safetensors.torch import load, save
from torch import Tensor

from dlplatform.checkpoint import weights_of

if TYPE_CHECKING:
    from dlplatform.judge import Judge
    from dlplatform.memorybox.cluster import Cluster
    from dlplatform.pipeline.cut import Cut


def give(cluster: Cluster, name: str, tensors: dict[str, Tensor]) -> None:
    """Leave named tensors in the boxes under a name never used before."""
    data = save({key: t.detach().clone().contiguous() for key, t in tensors.items()})
    info = cluster.create(name, -(-len(data) // 4))
    buffer = cluster.attach(info)
    ctypes.memmove(buffer.region, data + b"\0" * (-len(data) % 4), 4 * buffer.length)
    buffer.write()
    buffer.release()
    cluster.publish(f"handover/{name}", {"bytes": len(data), "info": info})


def take(cluster: Cluster, name: str) -> dict[str, Tensor]:
    """Wait for what somebody gives under a name, return it and free its memory."""
    given = cluster.lookup(f"handover/{name}")
    buffer = cluster.attach(given["info"])
    buffer.read()
    data = ctypes.string_at(buffer.region, given["bytes"])
    buffer.release()
    buffer.delete()
    return load(data)


class Handover:
    """One end of the way: every other stage of the first pipeline gives, the chief gathers.

    Args:
        cut: this worker's place in the pipelines.
        cluster: of the job.
        judge: holds this worker's part of the job's weights, and takes the rest.
    """

    def __init__(self, cut: Cut, cluster: Cluster, judge: Judge) -> None:
        self.cut, self.cluster, self.judge = cut, cluster, judge
        self.when = ""
        self.others: dict[str, Tensor] = {}

    def give(self, when: str, moments: dict[str, Tensor]) -> None:
        """Give the judged weights and buffers of this worker's stage, and its moments."""
        states = [module.state_dict(keep_vars=True) for module in self.judge.modules.values()]
        mine = {id(tensor) for state in states for tensor in state.values()}
        named = weights_of(self.judge.models).items()
        tensors = {f"weight:{name}": tensor for name, tensor in named if id(tensor) in mine}
        tensors |= {f"moment:{name}": tensor for name, tensor in moments.items()}
        give(self.cluster, f"{self.cut.stage}/{when}", tensors)

    def gather(self, when: str) -> None:
        """Put the other stages' weights beside this one's to be judged."""
        if when != self.when:
            for stage in range(1, self.cut.stages):
                self.others |= take(self.cluster, f"{stage}/{when}")
            self.when = when
        for name, tensor in weights_of(self.judge.models).items():
            if f"weight:{name}" in self.others:
                tensor.data.copy_(self.others[f"weight:{name}"])

    def moments(self) -> dict[str, Tensor]:
        """Return the other stages' moments, as gathered last."""
        kinds = ((name.partition(":"), tensor) for name, tensor in self.others.items())
        return {name: tensor for (kind, _, name), tensor in kinds if kind == "moment"}
