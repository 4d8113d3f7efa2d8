"""Where context modules go: every name in every host, extended and duplicated ones, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlplatform.errors import UsageError
from trainers.nets.deformable import deformables, set_offsets
from trainers.nets.espnet import EESP, ESPNetV2, widths
from trainers.nets.pyramids import ASPP, DSPP, SPP
from trainers.road.choices import CONTEXTS
from trainers.road.contexts import Context, Wiring, context_module
from trainers.road.hosts import DeepLab, ESPNet, Tiny, host


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def meta(net: nn.Module, *shape: int) -> object:
    """Run a network for its shapes only."""
    return net.to("meta")(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("kind", ["conv", "df", "sdf", "spp", "aspp", "dspp"])
def test_every_module_keeps_channels_and_size(kind: str) -> None:
    x_BCHW = torch.randn(2, 18, 6, 8)
    assert context_module(kind, 18)(x_BCHW).shape == x_BCHW.shape


@pytest.mark.parametrize("name", CONTEXTS)
def test_every_context_goes_into_a_host_by_its_name(name: str) -> None:
    net = Tiny(name, 6, Wiring()).eval()
    assert net(torch.randn(1, 3, 64, 128)).shape == (1, 6, 64, 128)
    extended = name.endswith(("_ext", "_dup"))
    assert (net.context.fine is not None) is extended
    with torch.device("meta"):
        for build in (ESPNet, DeepLab):
            assert build(name, 19, Wiring()).context.factor == 1 + extended


@pytest.mark.parametrize("name", ["espnet", "deeplab"])
@pytest.mark.parametrize("size", [(64, 128), (768, 768)])
def test_hosts_answer_at_the_size_of_the_picture(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        net = host(name, "dspp_ext", 19, Wiring())
    answer = meta(net.train(), 2, 3, *size)
    auxiliary = isinstance(answer, dict)
    assert auxiliary == (name == "espnet")
    for logits_BKHW in answer.values() if isinstance(answer, dict) else [answer]:
        assert logits_BKHW.shape == (2, 19, *size)
    assert meta(net.eval(), 1, 3, *size).shape == (1, 19, *size)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["espnet", "deeplab"])
def test_hosts_take_a_step_with_finite_gradients(name: str) -> None:
    net = host(name, "dspp_ext", 19, Wiring(validity="gate")).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    answer = net(torch.randn(2, 3, 64, 64))
    heads = list(answer.values()) if isinstance(answer, dict) else [answer]
    assert all(logits_BKHW.isfinite().all() for logits_BKHW in heads)
    sum(logits_BKHW.square().mean() for logits_BKHW in heads).backward()
    for part, p in net.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), part
    before = net.encoder.state_dict(keep_vars=True)
    old = {part: p.detach().clone() for part, p in before.items() if p.requires_grad}
    optimizer.step()
    assert all(bool(before[part].isfinite().all()) for part in old)
    assert any(not torch.equal(before[part], was) for part, was in old.items())


def test_wiring_says_whether_paths_share_and_run_at_once() -> None:
    for tied in (True, False):
        context = Context("dspp_ext_dup", 18, 9, Wiring(tied=tied, at_once=not tied))
        modules = [m for m in context.modules() if isinstance(m, DSPP)]
        assert len(modules) == 4 and all(m.at_once is not tied for m in modules)
        for module in modules:
            kernels = {id(path.feature.weight) for path in module.paths}
            assert len(kernels) == (1 if tied else len(module.paths))


def test_espnet_of_scale_1_5_has_the_channels_of_figure_8() -> None:
    assert widths(1.5) == (32, 96, 192, 384)
    with torch.device("meta"):
        encoder = ESPNetV2(1.5)
    maps = meta(encoder, 1, 3, 64, 128)
    assert [tuple(m.shape[1:]) for m in maps] == [  # type: ignore[attr-defined]
        (32, 32, 64), (96, 16, 32), (192, 8, 16), (384, 4, 8)
    ]  # fmt: skip
    assert [len(units) for units in encoder.units] == [0, 3, 7]


def test_a_unit_adds_each_dilation_to_the_next_and_its_input_at_the_end() -> None:
    unit = EESP(16, 16, limit=7)
    assert [layer.dilation[0] for layer in unit.dilated] == [1, 1, 2, 3]
    assert [layer.dilation[0] for layer in EESP(16, 16, limit=13).dilated] == [1, 2, 3, 4]
    nn.init.zeros_(unit.expand[1].weight)
    nn.init.zeros_(unit.expand[1].bias)
    x_BCHW = torch.rand(1, 16, 5, 5)
    torch.testing.assert_close(unit(x_BCHW), x_BCHW)  # PReLU of what is positive


def test_extended_dspp_is_two_modules_in_series_with_two_and_three_paths() -> None:
    context = Context("dspp_ext", 18, 9).eval()
    first, second = (m for m in context.modules() if isinstance(m, DSPP))
    assert first.pools == (1, 2) and second.pools == (1, 2, 4)
    seen: list[tuple[int, ...]] = []
    for module in (first, second):
        module.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[2:])))
    coarse_BCHW, fine_BCHW = torch.randn(1, 18, 4, 5), torch.randn(1, 9, 8, 10)
    assert context(coarse_BCHW, fine_BCHW).shape == (1, 18, 8, 10)
    assert seen == [(4, 5), (8, 10)]


def test_duplicates_stand_in_series_with_weights_of_their_own() -> None:
    context = Context("dspp_ext_dup", 18, 9)
    modules = [m for m in context.modules() if isinstance(m, DSPP)]
    assert [m.pools for m in modules] == [(1, 2), (1, 2), (1, 2, 4), (1, 2, 4)]
    assert len({id(m.shared.offset.weight) for m in modules}) == 4
    assert set_offsets(context, "integer") == 10
    assert all(layer.offsets == "integer" for layer in deformables(context))


@pytest.mark.parametrize(("name", "kind"), [("spp_ext", SPP), ("aspp_ext", ASPP)])
def test_extended_spp_and_aspp_are_wired_alike(name: str, kind: type) -> None:
    context = Context(name, 18, 9).eval()
    assert len([m for m in context.modules() if isinstance(m, kind)]) == 2
    assert context(torch.randn(1, 18, 4, 4), torch.randn(1, 9, 8, 8)).shape == (1, 18, 8, 8)


def test_the_skip_and_sharing_over_strides_can_be_chosen() -> None:
    fine = torch.randn(1, 9, 8, 8), torch.randn(1, 9, 8, 8)
    coarse_BCHW = torch.randn(1, 18, 4, 4)
    literal = Context("dspp_ext", 18, 9, Wiring(skip=False)).eval()
    assert torch.equal(literal(coarse_BCHW, fine[0]), literal(coarse_BCHW, fine[1]))
    skipping = Context("dspp_ext", 18, 9).eval()
    assert not torch.equal(skipping(coarse_BCHW, fine[0]), skipping(coarse_BCHW, fine[1]))
    for share in (False, True):
        context = Context("dspp_ext", 18, 9, Wiring(share=share))
        first, second = (m.shared.offset for m in context.modules() if isinstance(m, DSPP))
        assert (first is second) is share


def test_the_two_strides_are_chosen_and_must_fall() -> None:
    context = Context("dspp_ext", 18, 9, Wiring(strides=(32, 8)))
    assert context.factor == 4
    pools = [m.pools for m in context.modules() if isinstance(m, DSPP)]
    assert pools == [(1,), (1, 2, 4)]
    for strides in ((16, 16), (8, 16), (16, 6)):
        with pytest.raises(UsageError, match=r"strides=.* of a context - allowed: a second one"):
            Wiring(strides=strides)


def test_an_unknown_module_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"module=dsp; closest: dspp - allowed: conv, df"):
        Context("dsp", 9, 9)
