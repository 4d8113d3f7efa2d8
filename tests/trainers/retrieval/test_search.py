"""The index and the device: order, ties, shards, same class, copies and feedback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dlplatform.errors import UsageError
from trainers.blocks.maml import Inner, Labelled
from trainers.blocks.metric import contrastive
from trainers.nets.embedding import Embedding
from trainers.retrieval.device import Database, SearchDevice
from trainers.retrieval.index import Hit, Index, judged
from trainers.synth.glyphs import draw_glyphs

NAMES = ("a", "b", "c", "d")


def glyphs(each: int = 10) -> tuple[Tensor, Tensor]:
    x_NHW, labels = draw_glyphs(0, len(NAMES), each)
    return x_NHW[:, None], labels


def device(classes_known: bool = True) -> tuple[SearchDevice, Tensor]:
    torch.manual_seed(0)
    net = Embedding(1, (8, 16))
    x_NCHW, labels = glyphs()
    few = torch.arange(40) % 10 < 3
    known = tuple(NAMES[k] for k in labels[~few].tolist()) if classes_known else ()
    database = Database(x_NCHW[~few], tuple(f"{n}.png" for n in range(28)), known)
    one = SearchDevice(net, Inner(contrastive, steps=5, alpha=0.2), NAMES)
    one.adapt("glyphs", Labelled(x_NCHW[few], labels[few]), database)
    return one, x_NCHW


def test_results_come_nearest_first_and_ties_in_the_order_of_the_database() -> None:
    z_ND = functional.normalize(torch.tensor([[1.0, 1], [0, 1], [1, 1], [1, 0], [1, 1]]), dim=1)
    index = Index(z_ND, tuple("vwxyz"), ("p", "q", "p", "q", "q"))
    hits = index.search(torch.tensor([1.0, 0]), 4)
    assert [hit.name for hit in hits] == ["y", "v", "x", "z"]
    assert [hit.place for hit in hits] == [3, 0, 2, 4]
    assert hits[1].distance == pytest.approx(float((z_ND[0] - z_ND[3]).norm()), abs=1e-4)
    assert len(index.search(z_ND[0], 99)) == 5
    assert [hit.name for hit in index.same_class(torch.tensor([1.0, 0]), "q")] == ["y", "z", "w"]
    with pytest.raises(UsageError, match=r"task\.nearest=0"):
        index.search(z_ND[0], 0)


def test_merged_shards_find_what_the_whole_finds() -> None:
    torch.manual_seed(0)
    net, (x_NCHW, _) = Embedding(1, (8, 16)), glyphs()
    x_NCHW = torch.cat([x_NCHW, x_NCHW[:9]])  # the same picture in two shards is a tie
    names = [str(n) for n in range(49)]
    whole = Index.build(net, x_NCHW, names, names)
    shards = [
        Index.build(net, x_NCHW[part], names[part], names[part])
        for part in (slice(0, 7), slice(7, 30), slice(30, 49))
    ]
    merged = Index.merged(shards)
    for z_D in whole.z_ND:
        first, second = (
            [(hit.place, hit.name) for hit in index.search(z_D, 12)] for index in (whole, merged)
        )
        assert first == second


def test_an_index_is_stored_and_read_again(tmp_path: Path) -> None:
    index = Index(torch.eye(3), ("one", "two", "three"), ("x", "y", "x"))
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    assert torch.equal(again.z_ND, index.z_ND)
    assert (again.names, again.labels) == (index.names, index.labels)
    (tmp_path / "bad").write_text("no index")
    for name in ("bad", "missing"):
        with pytest.raises(UsageError, match=f"{name} is no index"):
            Index.load(tmp_path / name)


def test_a_class_is_judged_by_the_nearest_mean() -> None:
    support_MD = functional.normalize(torch.tensor([[1.0, 0], [1, 0.2], [0, 1], [0.2, 1]]), dim=1)
    z_ND = functional.normalize(torch.tensor([[1.0, 0.6], [0.6, 1]]), dim=1)
    assert judged(z_ND, support_MD, torch.tensor([7, 7, 3, 3])).tolist() == [7, 3]


def test_the_device_searches_and_names_the_same_class() -> None:
    one, x_NCHW = device()
    with pytest.raises(UsageError, match="receive it first"):
        one.search("glyphs", 3)
    one.receive(x_NCHW[3])  # it is the first one of the database itself
    hits = one.search("glyphs", 5)
    assert hits[0].place == 0 and hits[0].distance < 0.01
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
    label, same = one.same_class("glyphs")
    assert label == "a" and len(same) == 7 and {hit.label for hit in same} == {"a"}


def test_pictures_without_labels_get_the_class_they_are_judged_to_have() -> None:
    one, x_NCHW = device(classes_known=False)
    one.receive(x_NCHW[3])
    label, same = one.same_class("glyphs")
    assert label == "a" and sum(hit.place < 7 for hit in same) >= 4


def test_every_domain_has_its_own_copy_and_the_network_stays() -> None:
    one, _ = device()
    before = [weight.clone() for weight in one.net.parameters()]
    first = one.domains["glyphs"]
    second = one.adapt("turned", Labelled(first.support.pictures.flip(2), first.support.labels),
                       first.database)  # fmt: skip
    now = (list(net.parameters()) for net in (one.net, first.net, second.net))
    for stored, theta, adapted, other in zip(before, *now, strict=True):
        assert torch.equal(stored, theta)
        assert not torch.equal(theta, adapted) and not torch.equal(adapted, other)


def test_feedback_is_scored_and_moves_results_the_right_way() -> None:
    one, x_NCHW = device()
    with pytest.raises(UsageError, match="1 flags for 0 results"):
        one.feedback("glyphs", [True])
    one.receive(x_NCHW[13])
    hits = one.search("glyphs", 10)
    flags = [hit.label == "b" for hit in hits]
    assert 0 < sum(flags) < 10
    z_D = one.domains["glyphs"].index.z_ND
    gap = distance_gap(one, hits, flags, x_NCHW[13])
    assert one.feedback("glyphs", flags) == sum(flags) / 10
    assert not torch.equal(one.domains["glyphs"].index.z_ND, z_D)
    assert distance_gap(one, hits, flags, x_NCHW[13]) > gap, (
        "the irrelevant move away, the relevant near"
    )


def distance_gap(one: SearchDevice, hits: list[Hit], flags: list[bool], asked: Tensor) -> float:
    domain = one.domains["glyphs"]
    with torch.no_grad():
        found = domain.index.search(domain.net(asked[None])[0], 28)
    distance = {hit.place: hit.distance for hit in found}
    pairs = list(zip(hits, flags, strict=True))
    far, near = (
        [distance[hit.place] for hit, flag in pairs if flag == wanted] for wanted in (False, True)
    )
    return sum(far) / len(far) - sum(near) / len(near)
