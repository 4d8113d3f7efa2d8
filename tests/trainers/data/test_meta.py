"""Meta-data: distances between pictures of a set, stored and read again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from dlplatform.errors import UsageError
from trainers.data.meta import DistanceInfo, MetaDataset
from trainers.data.samples import Samples
from trainers.nets.embedding import Embedding
from trainers.synth.glyphs import draw_glyphs


def glyphs(names: str) -> MetaDataset:
    x_NHW, labels = draw_glyphs(0, len(names), 4)
    return MetaDataset(Samples(x_NHW[:, None], labels, tuple(names)))


def test_distance_information_is_stored_and_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, net = glyphs("abc"), Embedding(1, (8, 8))
    info = data.distance_info(net)
    with torch.no_grad():
        z_ND = net(data.samples.pair()[0])
    assert torch.allclose(info.square_NN, torch.cdist(z_ND, z_ND).square(), atol=1e-4)
    assert torch.equal(info.square_NN.diagonal(), torch.zeros(12)) and 0 < info.ratio < 1
    info.save(tmp_path / "distances")
    again = DistanceInfo.load(tmp_path / "distances")
    assert torch.equal(again.square_NN, info.square_NN) and torch.equal(again.labels, info.labels)
    assert again.ratio == info.ratio


def test_files_that_hold_no_distances_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"PK no archive")
    for name in ("bad", "missing"):
        with pytest.raises(UsageError, match=f"{name} holds no distances"):
            DistanceInfo.load(tmp_path / name)


def test_classes_that_overlap_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert glyphs("abc").shared_classes(glyphs("xyz")) == []
        assert not caplog.records
        assert glyphs("abc").shared_classes(glyphs("bcd")) == ["b", "c"]
    assert "share 2 classes (b, c)" in caplog.text
