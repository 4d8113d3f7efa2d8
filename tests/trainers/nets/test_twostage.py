"""Detectors of two stages: the picture is seen once, regions are read, judged and learnt from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.blocks.anchors import OBJECT, Anchors, Overlap, judge
from trainers.blocks.boxes import pair_iou, to_deltas
from trainers.blocks.fcos import Limits
from trainers.data.instances import Instances
from trainers.nets.rcnn import (
    WEIGHTS,
    Sampled,
    Sampling,
    best_moved,
    box_loss,
    detected,
    moved,
    read_regions,
    sample_regions,
)
from trainers.nets.rpn import ProposalNet, Proposing
from trainers.nets.twostage import Heads, Trunk, TwoStageNet
from trainers.nets.vgg import VGG, Head

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def truth(*boxes: tuple[float, ...], labels: tuple[int, ...] = ()) -> Instances:
    kinds = labels or (0,) * len(boxes)
    where = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(where, torch.tensor(kinds, dtype=torch.int64))


def net(passes: int = 1, shared: bool = True, masks: int = 0) -> TwoStageNet:
    trunk = Trunk(VGG(11, 0.125, True, Head(1, 1, 32)), ("relu4_2",))
    rpn = ProposalNet(trunk.channels, Anchors((16.0, 32.0)), 16, Proposing(kept=20))
    heads = Heads(3, hidden=16, passes=passes, shared=shared, masks=masks, convs=1)
    return TwoStageNet(trunk, rpn, heads)


def test_a_trunk_joins_maps_at_the_finest_and_has_no_layers_behind_them() -> None:
    backbone = VGG(11, 0.125, True, Head(1, 1, 32))
    trunk = Trunk(backbone, ("relu3_2", "relu4_2"))
    x_BCHW = torch.randn(1, 3, 64, 48)
    backbone.eval(), trunk.eval()
    map_BCHW = trunk(x_BCHW)
    maps = backbone.features(x_BCHW, "relu3_2", "relu4_2")
    assert trunk.stride == 4 and map_BCHW.shape == (1, trunk.channels, 16, 12)
    assert torch.equal(map_BCHW[:, : backbone.channels["relu3_2"]], maps["relu3_2"])
    assert torch.equal(map_BCHW[:, backbone.channels["relu3_2"] :, ::2, ::2], maps["relu4_2"])
    assert [name for name, _ in trunk.layers.named_children()][-1] == "relu4_2"


def test_the_net_sees_a_picture_once_however_many_regions_there_are() -> None:
    model = net(passes=3).eval()
    seen: list[int] = []
    model.trunk.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    map_BCHW, *_ = model(torch.randn(2, 3, *SIZE))
    boxes = [torch.rand(50, 4) * 20 + torch.tensor([0.0, 0, 25, 25]) for _ in range(2)]
    looks = model.passes(map_BCHW, boxes, SIZE)
    assert seen == [2] and len(looks) == 3
    assert all(look.logits_RK.shape == (100, 4) for look in looks)


def test_each_look_is_where_the_one_before_moved_to() -> None:
    model = net(passes=2).eval()
    torch.nn.init.normal_(model.boxes[0].move.weight, std=0.5)
    map_BCHW, *_ = model(torch.randn(1, 3, *SIZE))
    first, second = model.passes(map_BCHW, [torch.tensor([[4.0, 4, 30, 30]])], SIZE)
    expected = best_moved(first.boxes[0], first.answer, SIZE)
    torch.testing.assert_close(second.boxes[0], expected)
    assert not torch.equal(first.boxes[0], second.boxes[0])


def test_passes_share_a_head_or_have_their_own() -> None:
    assert len(net(passes=3).boxes) == 1
    assert len(net(passes=3, shared=False).boxes) == 3


@pytest.mark.parametrize("pooling", ["align", "pool"])
def test_regions_of_any_size_become_maps_of_one_size(pooling: str) -> None:
    map_BCHW = torch.randn(1, 2, 16, 16, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 128, 128], [3, 3, 7, 5], [100, 20, 127.5, 90]])
    read = read_regions(map_BCHW, [boxes], 7, 8, pooling)
    assert read.shape == (3, 2, 7, 7)
    read.sum().backward()
    assert map_BCHW.grad is not None and map_BCHW.grad.abs().sum() > 0


def test_pooling_takes_the_largest_and_its_gradient_goes_there() -> None:
    map_BCHW = torch.arange(16.0).reshape(1, 1, 4, 4).requires_grad_()
    read = read_regions(map_BCHW, [torch.tensor([[0.0, 0, 24, 24]])], 2, 8, "pool")
    assert read.flatten().tolist() == [5, 7, 13, 15]
    read[0, 0, 1, 1].backward()
    assert map_BCHW.grad is not None and int(map_BCHW.grad.argmax()) == 15
    assert float(map_BCHW.grad.sum()) == 1


def test_aligned_reading_is_bilinear_and_follows_shifts_that_pooling_does_not_see() -> None:
    ramp = (torch.arange(8.0) * 10).expand(1, 1, 8, 8).contiguous()

    def read(shift: float, pooling: str) -> Tensor:
        return read_regions(ramp, [torch.tensor([[8.0 + shift, 8, 40 + shift, 40]])], 2, 8, pooling)

    # Bins of two pixels with samples a half off their middles; pixel 0's middle is at 4.
    assert read(0, "align")[0, 0, 0].tolist() == pytest.approx([15, 35])
    assert read(2, "align")[0, 0, 0].tolist() == pytest.approx([17.5, 37.5])
    steps = [read(shift, "align").mean() for shift in torch.linspace(0, 8, 17).tolist()]
    differences = torch.stack(steps).diff()
    assert torch.allclose(differences, torch.full_like(differences, 10 / 16), atol=1e-4)
    jumps = torch.stack([read(s, "pool").mean() for s in torch.linspace(0, 8, 17).tolist()]).diff()
    assert int((jumps == 0).sum()) >= 14 and float(jumps.max()) >= 5


def test_proposals_are_decoded_anchors_without_doubles_inside_the_picture() -> None:
    model = net()
    assert model.rpn is not None
    anchors_A4 = model.rpn.boxes(torch.zeros(1, 1, 8, 8))
    logits_BA = torch.full((1, len(anchors_A4)), -5.0)
    deltas_BA4 = torch.zeros(1, len(anchors_A4), 4)
    at = int(pair_iou(anchors_A4, torch.tensor([[20.0, 20, 40, 40]])).argmax())
    deltas_BA4[0, at] = to_deltas(anchors_A4[at], torch.tensor([20.0, 20, 40, 40]))
    logits_BA[0, at] = 5.0
    (found,) = model.rpn.propose((logits_BA, deltas_BA4), anchors_A4, SIZE)
    assert found[0].tolist() == pytest.approx([20, 20, 40, 40], abs=1e-3)
    assert len(found) == 20 and found.min() >= 0 and found.max() <= 64
    overlap = pair_iou(found, found).fill_diagonal_(0)
    assert float(overlap.max()) <= 0.7


def test_the_loss_of_proposals_is_that_of_perfect_and_of_blank_answers() -> None:
    model = net()
    assert model.rpn is not None
    anchors_A4 = model.rpn.boxes(torch.zeros(1, 1, 8, 8))
    objects = truth((10, 10, 28, 26))
    kinds = judge(anchors_A4, objects, Overlap()).kind_A
    wanted = to_deltas(anchors_A4, objects.boxes_N4.expand(len(anchors_A4), 4))
    sure = torch.where(kinds == OBJECT, 20.0, -20.0)
    terms = model.rpn.loss((sure[None], wanted[None]), anchors_A4, [objects], SIZE)
    assert float(terms["rpn_class"].total) == pytest.approx(0, abs=1e-3)
    assert float(terms["rpn_box"].total) == pytest.approx(0, abs=1e-5)
    blank = torch.zeros_like(sure)[None], torch.zeros_like(wanted)[None]
    terms = model.rpn.loss(blank, anchors_A4, [objects], SIZE)
    mean = float(terms["rpn_class"].total) / float(terms["rpn_class"].number)
    assert mean == pytest.approx(math.log(2), rel=1e-4)
    assert float(terms["rpn_box"].total) > 0


def test_true_boxes_are_among_the_regions_and_objects_have_their_share() -> None:
    objects = truth((0, 0, 20, 20), (30, 30, 60, 60), labels=(1, 2))
    wild = torch.rand(200, 4) * 8 + torch.tensor([0.0, 40, 10, 50])
    near = objects.boxes_N4[:1].repeat(60, 1) + torch.rand(60, 4) * 4
    sampled = sample_regions([torch.cat([wild, near])], [objects], 3, Sampling())
    assert len(sampled.labels_R) == 64 and int((sampled.labels_R < 3).sum()) == 16
    assert set(sampled.labels_R.tolist()) <= {1, 2, 3}
    there = sampled.labels_R < 3
    assert bool((pair_iou(sampled.boxes[0], objects.boxes_N4).amax(1) >= 0.5)[there].all())
    owner = sampled.owners[0]
    assert torch.equal(sampled.truth_R4[there], objects.boxes_N4[owner[there]])
    alone = sample_regions([wild[:0]], [objects], 3, Sampling())
    assert sorted(alone.labels_R.tolist()) == [1, 2]


def test_the_loss_of_regions_is_worked_out_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    wanted = torch.tensor([[1.0, 0, 11, 10], [20, 20, 30, 30]])
    sampled = Sampled([boxes], torch.tensor([1, 2]), wanted, [torch.tensor([0, -1])])
    logits_RK = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    deltas_RK4 = torch.zeros(2, 2, 4)
    terms = box_loss((logits_RK, deltas_RK4), sampled)
    entropy = -(2 - math.log(2 + math.exp(2))) - (1 - math.log(2 + math.exp(1)))
    assert float(terms["class"].total) == pytest.approx(entropy, rel=1e-5)
    # A shift of a tenth, ten times as strong: 1, where the smooth L1 is 0.5.
    assert float(terms["box"].total) == pytest.approx(0.5)
    assert terms["class"].number == terms["box"].number == 2
    deltas_RK4[0, 1, 0] = 0.1 * WEIGHTS[0]
    assert float(box_loss((logits_RK, deltas_RK4), sampled)["box"].total) == pytest.approx(0)
    assert moved(boxes, deltas_RK4, (64, 64))[0, 1].tolist() == pytest.approx([1, 0, 11, 10])


def test_of_boxes_of_one_class_that_cover_each_other_the_best_stays() -> None:
    chances_RK = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.02, 0.03, 0.95]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 50, 50]])
    limits = Limits(0.05, iou=0.3)
    found, region = detected(chances_RK, boxes[:, None].expand(-1, 2, 4), limits)
    assert region.tolist() == [0, 1]
    assert found.labels_N.tolist() == [0, 1]
    assert found.scores_N.tolist() == pytest.approx([0.8, 0.3])
    assert found.boxes_N4.tolist() == boxes[:2].tolist()
