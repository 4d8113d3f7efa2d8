"""zoo/inception: the table of the paper, what 1x1 convolutions save, and it learns."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dlplatform.errors import UsageError
from dlplatform.task import Models
from trainers.blocks.balance import multiply_adds
from trainers.nets.inception import TABLE, GoogLeNet, InceptionBlock, Plan, threads
from trainers.zoo.inception import InceptionPictures

OUT = (256, 480, 512, 512, 512, 528, 832, 832, 1024)
TINY = Plan(classes=10, side=32, width=0.125, small=True, norm=True)


def conv_weights(net: nn.Module) -> int:
    return sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d))


def test_channels_and_sizes_are_those_of_the_table() -> None:
    assert tuple(branches.out for branches in TABLE.values()) == OUT
    with torch.device("meta"):
        net = GoogLeNet()
        names = [f"inception{place}" for place in TABLE]
        maps = net.features(torch.zeros(1, 3, 224, 224), *names)
    assert tuple(net.channels[name] for name in names) == OUT
    sides = (28, 28, 14, 14, 14, 14, 14, 7, 7)
    found = [tuple(maps[name].shape) for name in names]
    assert found == [(1, out, side, side) for out, side in zip(OUT, sides, strict=True)]
    assert all(224 // net.strides[name] == maps[name].shape[2] for name in names)


def test_parameters_of_the_published_net() -> None:
    with torch.device("meta"):
        with_auxiliary, without = GoogLeNet(), GoogLeNet(Plan(auxiliary=False))
    count = [sum(p.numel() for p in net.parameters()) for net in (without, with_auxiliary)]
    assert count == [6_998_552, 13_378_280]


def test_four_branches_are_joined_on_the_channels() -> None:
    block = InceptionBlock(192, TABLE["3a"]).eval()
    x_BCHW = torch.rand(1, 192, 7, 7)
    parts = [branch(x_BCHW) for branch in block.branches]
    assert [part.shape[1] for part in parts] == [64, 128, 32, 32]
    assert torch.equal(block(x_BCHW), torch.cat(parts, 1))
    kernels = [
        [layer.kernel_size[0] for layer in branch if isinstance(layer, nn.Conv2d)]
        for branch in block.branches
    ]
    assert kernels == [[1], [1, 3], [1, 5], [1]]
    assert isinstance(block.branches[3][0], nn.MaxPool2d)


def test_1x1_convolutions_save_weights_and_multiplications() -> None:
    with torch.device("meta"):
        slim, plain = (InceptionBlock(192, TABLE["3a"], reduce=way) for way in (True, False))
        weights = [[conv_weights(branch) for branch in net.branches] for net in (slim, plain)]
    assert (weights[0][1], weights[1][1]) == (129_024, 221_184)
    assert (weights[0][2], weights[1][2]) == (15_872, 153_600)
    small, large = (
        multiply_adds([InceptionBlock(48, TABLE["3a"].times(0.25), reduce=way)],
                      torch.zeros(1, 48, 28, 28))[0]
        for way in (True, False)
    )  # fmt: skip
    assert 0.35 < sum(weights[0]) / sum(weights[1]) < 0.45
    assert 0.35 < small / large < 0.45


def test_auxiliary_classifiers_work_in_training_only() -> None:
    net, x_BCHW = GoogLeNet(TINY), torch.rand(2, 3, 32, 32)
    answers = net.train()(x_BCHW)
    assert [answer.shape for answer in answers] == [(2, 10)] * 3
    assert net.eval()(x_BCHW).shape == (2, 10)
    for part in net.auxiliary.values():
        for p in part.parameters():
            p.data.fill_(float("nan"))
    assert net(x_BCHW).isfinite().all()
    assert GoogLeNet(Plan(10, 32, 0.125, small=True, auxiliary=False))(x_BCHW).shape == (2, 10)


def test_the_loss_weighs_the_auxiliary_classifiers() -> None:
    task = InceptionPictures(batch_size=4)
    models, batch = task.models(), task.batch("train", 0)
    terms = task.loss(models, batch)
    assert set(terms) == {"main", "auxiliary"}
    # Untrained, each of the three is wrong alike: 0.3 of two losses beside one.
    assert 0.3 < float(terms["auxiliary"] / terms["main"]) < 1.2
    models["net"].eval()
    assert isinstance(task.loss(models, batch), torch.Tensor)
    assert len(list(InceptionPictures(auxiliary=0.0).models()["net"].auxiliary)) == 0


def test_branches_in_threads_return_the_same() -> None:
    torch.manual_seed(0)
    one = GoogLeNet(TINY).eval()
    torch.manual_seed(0)
    threaded = GoogLeNet(Plan(10, 32, 0.125, small=True, norm=True, at_once=True)).eval()
    x_BCHW = torch.rand(2, 3, 32, 32)
    for net in (one, threaded):
        net(x_BCHW).sum().backward()
    pairs = zip(one.named_parameters(), threaded.parameters(), strict=True)
    for (name, a), b in pairs:
        assert (a.grad is None) == (b.grad is None) == name.startswith("auxiliary")
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(one(x_BCHW), threaded(x_BCHW))
        assert not threaded(x_BCHW).requires_grad


def test_branches_run_beside_one_another() -> None:
    """Each branch waits for the others: one after another they would never end."""
    together = threading.Barrier(3, timeout=60)

    class Waits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            together.wait()
            return x + 1

    made = threads([Waits() for _ in range(3)], torch.zeros(1, 1, 2, 2))
    assert all(float(x.sum()) == 4 for x in made)


def test_a_pipeline_needs_a_net_without_auxiliary_classifiers() -> None:
    task = InceptionPictures()
    with pytest.raises(UsageError, match=r"stages=2 with task.auxiliary=0.3.*task.auxiliary=0$"):
        task.split(task.models(), 2)
    task = InceptionPictures(auxiliary=0.0)
    assert len(task.split(task.models(), 2).stages) == 2


def test_the_rate_of_the_paper_falls_every_eight_epochs() -> None:
    task = InceptionPictures(stepwise=True, batch_size=40, minibatches=2000)  # 20 epochs
    rates = [task.rate(at) for at in (0, 0.39, 0.41, 0.79, 0.81)]
    assert rates == pytest.approx([1, 1, 0.96, 0.96, 0.96**2])


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(UsageError, match=r"task.auxiliary=-0.1 cannot work - allowed: 0 or more"):
        InceptionPictures(auxiliary=-0.1)


@pytest.mark.slow
def test_it_learns_far_beyond_chance(train: Callable[..., Models]) -> None:
    task = InceptionPictures(minibatches=360, batch_size=16, lr=0.015)
    models = train(task)
    assert task.score(models, task.batches("test"))["accuracy"] > 0.18, "chance is 0.1"
