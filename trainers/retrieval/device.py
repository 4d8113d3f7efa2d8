"""A device that searches pictures: input, storage, computing and output, as one object.

Source: the patent on few-shot retrieval, claims 6, 9 and 13, Fig. 3.
Shape legend: N pictures, M results, C channels, H height, W width, D size of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dlplatform.errors import UsageError
from trainers.blocks.maml import Inner, Labelled, Weights, adapted
from trainers.blocks.metric import pairwise, squared_distances
from trainers.data.meta import embedded
from trainers.retrieval.index import Hit, Index, judged


@dataclass(frozen=True)
class Database:
    """Pictures to search, with a name each; and their classes, where these are known."""

    x_NCHW: Tensor
    names: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass
class Domain:
    """What is stored for one domain: labelled pictures, the adapted copy, its index."""

    support: Labelled
    database: Database
    net: nn.Module
    index: Index


@dataclass
class SearchDevice:
    """Searches domains with copies of one trained network, which itself never changes."""

    net: nn.Module
    inner: Inner
    classes: tuple[str, ...]
    """Names of the classes that labels of support pictures count."""
    sizes: Weights | None = None
    domains: dict[str, Domain] = field(default_factory=dict)
    """The storage."""
    query_1CHW: Tensor | None = None
    hits: list[Hit] = field(default_factory=list)

    @property
    def where(self) -> torch.device:
        """Return the device that computes: where the network is."""
        return next(self.net.parameters()).device

    def adapt(self, name: str, support: Labelled, database: Database) -> Domain:
        """Adapt a copy to a few labelled pictures and index a database with it (computing)."""
        support = Labelled(*(part.to(self.where) for part in support))
        database = replace(database, x_NCHW=database.x_NCHW.to(self.where))
        net = adapted(self.net, support, self.inner, self.sizes)
        self.domains[name] = Domain(support, database, net, _indexed(net, support, database, self))
        return self.domains[name]

    def receive(self, x_CHW: Tensor) -> None:
        """Take the picture to search for (input)."""
        self.query_1CHW, self.hits = x_CHW[None].to(self.where), []

    def search(self, name: str, count: int) -> list[Hit]:
        """Return the nearest pictures of a domain's database (output)."""
        self.hits = self.domains[name].index.search(self._query(name), count)
        return self.hits

    def same_class(self, name: str) -> tuple[str, list[Hit]]:
        """Return the query's class, judged by the support, and all pictures of it."""
        domain, z_D = self.domains[name], self._query(name)
        z_MD = embedded(domain.net, domain.support.pictures)
        label = self.classes[int(judged(z_D[None], z_MD, domain.support.labels))]
        return label, domain.index.same_class(z_D, label)

    def feedback(self, name: str, flags: Sequence[bool], steps: int = 3) -> float:
        """Take which of the last results are relevant, adjust the copy, return their share.

        The support set's loss and the pairs (query, result) are descended together. The index
        is built anew.
        """
        if len(flags) != len(self.hits) or not flags:
            raise UsageError(
                f"{len(flags)} flags for {len(self.hits)} results - allowed: one a result of the "
                "last search - do: search first, then flag every result"
            )
        domain, query_1CHW = self.domains[name], self._received()
        support = domain.support
        found_MCHW = domain.database.x_NCHW[[hit.place for hit in self.hits]]

        def loss(z_ND: Tensor, labels: Tensor) -> Tensor:
            relevant = torch.tensor([list(flags)], device=z_ND.device)
            few_ND, asked_1D, found_MD = torch.split(z_ND, [len(labels), 1, len(flags)])
            square = squared_distances(asked_1D, found_MD)
            return self.inner.loss(few_ND, labels) + pairwise(square, relevant, ~relevant)

        everything = torch.cat([support.pictures, query_1CHW, found_MCHW])
        inner = replace(self.inner, loss=loss, steps=steps)
        domain.net = adapted(domain.net, Labelled(everything, support.labels), inner, self.sizes)
        domain.index = _indexed(domain.net, support, domain.database, self)
        return sum(flags) / len(flags)

    def _received(self) -> Tensor:
        if self.query_1CHW is None:
            raise UsageError("a search without a picture - allowed: one - do: receive it first")
        return self.query_1CHW

    def _query(self, name: str) -> Tensor:
        return embedded(self.domains[name].net, self._received())[0]


def _indexed(net: nn.Module, support: Labelled, base: Database, device: SearchDevice) -> Index:
    if base.labels:
        return Index.build(net, base.x_NCHW, base.names, base.labels)
    z_ND, z_MD = (embedded(net, x_NCHW) for x_NCHW in (base.x_NCHW, support.pictures))
    labels = [device.classes[k] for k in judged(z_ND, z_MD, support.labels).tolist()]
    return Index(z_ND.cpu(), base.names, tuple(labels))
