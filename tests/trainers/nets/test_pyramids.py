"""Pyramids of context: paths and what they share, validity of offsets, the modules compared.

Shape legend: B batch, C channels, P paths, K positions of the kernel, H height, W width.
"""

from __future__ import annotations

import copy
import threading
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.errors import UsageError
from dlplatform.flat import FlatGroup
from trainers.nets import validity
from trainers.nets.deformable import Parts, SDfConv2d, Window, set_offsets
from trainers.nets.pyramids import ASPP, DSPP, SPP, inspect, paths_at, take_guides


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def moving(module: DSPP, size: float = 0.2) -> DSPP:
    """Give the shared offset kernel values that are not zero."""
    nn.init.normal_(module.shared.offset.weight, std=size)
    nn.init.normal_(module.shared.offset.bias, std=size)
    return module


def test_two_paths_and_their_fusion_are_what_figure_5_shows() -> None:
    module = moving(DSPP(18, 16)).eval()
    x_BCHW = torch.randn(2, 18, 8, 10)
    first, second = module.paths
    small_BCHW = second(functional.avg_pool2d(x_BCHW, 2))
    assert small_BCHW.shape == (2, 18, 4, 5)
    results = [module.after[0](first(x_BCHW)), module.after[1](small_BCHW)]
    results[1] = functional.interpolate(results[1], scale_factor=2, mode="bilinear")
    joined_BCHW = torch.cat(results, 1)
    torch.testing.assert_close(module(x_BCHW), module.fuse(joined_BCHW))
    assert joined_BCHW.shape[1] == 36 and module(x_BCHW).shape == x_BCHW.shape


def test_all_kernels_but_the_squeeze_are_the_same_objects() -> None:
    for stride in (16, 8):
        module = DSPP(18, stride)
        for one, other in pairwise(module.paths):
            assert one.offset.weight is other.offset.weight
            assert one.feature.weight is other.feature.weight
            assert one.squeeze[0].weight is not other.squeeze[0].weight


def test_shared_kernels_learn_the_sum_of_what_the_paths_learn() -> None:
    module = moving(DSPP(18, 16)).eval()
    x_BCHW = torch.randn(2, 18, 8, 8)
    shared = (module.shared.offset.weight, module.shared.feature.weight)

    def gradients(cut: int | None) -> list[Tensor]:
        found = [path(x) for path, x in zip(module.paths, module.pooled(x_BCHW), strict=True)]
        found = [y.detach() if n == cut else y for n, y in enumerate(found)]
        module._join(found, x_BCHW).square().sum().backward()
        grads = [p.grad.clone() for p in shared]
        module.zero_grad()
        return grads

    for both, one, other in zip(*(gradients(cut) for cut in (None, 1, 0)), strict=True):
        assert one.abs().sum() > 0 and other.abs().sum() > 0
        torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-4)


def test_nothing_goes_around_the_module() -> None:
    module = DSPP(18, 16).eval()
    nn.init.zeros_(module.shared.feature.weight)
    x_BCHW = torch.randn(1, 18, 8, 8)
    assert torch.equal(module(x_BCHW), module(torch.zeros_like(x_BCHW)))


@pytest.mark.parametrize("size", [(7, 9), (8, 5), (1, 3)])
def test_odd_sizes_come_out_as_they_went_in(size: tuple[int, int]) -> None:
    for module in (DSPP(9, 16), DSPP(9, 8), SPP(9), ASPP(9)):
        assert module.eval()(torch.randn(1, 9, *size)).shape == (1, 9, *size)


def test_both_paths_round_their_offsets() -> None:
    module = moving(DSPP(18, 16)).eval()
    x_BCHW = torch.randn(1, 18, 8, 8)
    real_BCHW = module(x_BCHW)
    assert set_offsets(module, "integer") == 2
    assert all(path.rounds(x_BCHW) for path in module.paths)
    assert not torch.equal(module(x_BCHW), real_BCHW)
    set_offsets(module, "real")
    assert torch.equal(module(x_BCHW), real_BCHW)


def test_paths_stop_before_features_are_too_abstract() -> None:
    assert paths_at(16) == (1, 2) and paths_at(8) == (1, 2, 4)
    assert DSPP(9, 16).pools == (1, 2) and DSPP(9, 8).pools == (1, 2, 4)
    for stride, pools in ((16, (1, 4)), (8, (1, 8)), (32, (1, 2)), (64, (1,))):
        with pytest.raises(UsageError, match=f"output stride {stride}: features at 1/"):
            DSPP(9, stride, pools)
    with pytest.raises(UsageError, match=r"validity=gated - allowed: implicit, gate, gate\+guide"):
        DSPP(9, 16, mode="gated")


def test_a_flat_group_holds_a_shared_kernel_once() -> None:
    module = DSPP(18, 16)
    group = FlatGroup("main", module.parameters())
    kernels = [p for p in group.parameters if p is module.shared.offset.weight]
    assert len(kernels) == 1
    assert sum(p.numel() for p in group.parameters) == sum(p.numel() for p in module.parameters())


def test_parameters_of_two_paths_at_384_channels() -> None:
    layers = {m for m in DSPP(384, 16).modules() if isinstance(m, nn.Conv2d)}
    assert sum(m.weight.numel() for m in layers) == 16_128 * 2 + 62_208 + 145_152 + 294_912


# -- validity ------------------------------------------------------------------------------


def parts(offset: float, coherence: float, side: int) -> Parts:
    """Make a path whose samples all lie at one offset and are alike to some degree."""
    offset_B2KHW = torch.full((1, 18, side, side), offset)
    squeezed_BDHW = torch.zeros(1, 2, side, side)
    squeezed_BDHW[:, 0] = 1
    cols_BDKHW = torch.zeros(1, 2, 9, side, side)
    cols_BDKHW[:, 0], cols_BDKHW[:, 1] = coherence, (1 - coherence**2) ** 0.5
    return Parts(squeezed_BDHW, offset_B2KHW, squeezed_BDHW, cols_BDKHW)


def test_paths_agree_when_the_smaller_one_moves_half_as_far() -> None:
    judged = validity.judge([parts(0.5, 0.9, 32), parts(0.25, 0.3, 16)], (1, 2), Window())
    torch.testing.assert_close(judged.offset_PBKYHW[0], judged.offset_PBKYHW[1])
    assert float(judged.disagreement_BHW.max()) < 1e-5
    torch.testing.assert_close(judged.weight_PBHW, torch.ones(2, 1, 32, 32), rtol=1e-4, atol=1e-4)
    said = validity.diagnose(judged, (1, 2))
    assert float(said["offset_ratio"]) == pytest.approx(2)


def test_on_disagreement_the_more_valid_path_counts_more_and_weights_sum_to_their_number() -> None:
    judged = validity.judge([parts(3.0, 0.9, 32), parts(-3.0, 0.3, 16)], (1, 2), Window())
    middle_P = judged.weight_PBHW[:, 0, 16, 16]
    assert middle_P.tolist() == pytest.approx([1.995, 0.005], abs=2e-3)
    torch.testing.assert_close(judged.weight_PBHW.sum(0), torch.full((1, 32, 32), 2.0))
    said = validity.diagnose(judged, (1, 2))
    assert float(said["offset_disagreement"]) == pytest.approx(9 * 2**0.5, rel=1e-4)
    assert float(said["validity_1"]) > float(said["validity_2"]) and float(said["won_1"]) > 0.8
    assert not judged.weight_PBHW.requires_grad


def test_offsets_are_correlated_where_the_paths_move_alike() -> None:
    first, second = parts(0.0, 0.9, 8), parts(0.0, 0.9, 4)
    nn.init.normal_(second.offset_B2KHW)
    alike = first._replace(offset_B2KHW=2 * validity.enlarge(second.offset_B2KHW, 2, (8, 8)))
    against = first._replace(offset_B2KHW=3 - alike.offset_B2KHW)
    for path, wanted in ((alike, 1.0), (against, -1.0), (first, 0.0)):
        said = validity.diagnose(validity.judge([path, second], (1, 2), Window()), (1, 2))
        assert float(said["offset_correlation"]) == pytest.approx(wanted, abs=1e-5)


def test_paths_untied_start_alike_and_learn_alone() -> None:
    module = moving(DSPP(18, 16)).eval()
    x_BCHW = torch.randn(2, 18, 8, 8)
    tied_BCHW = module(x_BCHW)
    assert torch.equal(module.untie()(x_BCHW), tied_BCHW)
    first, second = module.paths
    for name in ("offset", "feature"):
        assert getattr(first, name) is getattr(module.shared, name)
        assert getattr(first, name).weight is not getattr(second, name).weight
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(x_BCHW).square().sum().backward()
    optimizer.step()
    assert not torch.equal(first.feature.weight, second.feature.weight)


@pytest.mark.parametrize("mode", validity.MODES)
def test_paths_in_threads_return_and_learn_the_same(mode: str) -> None:
    one = moving(DSPP(18, 8, mode=mode))
    other = copy.deepcopy(one)
    other.at_once = True
    x_BCHW = torch.randn(2, 18, 8, 8)
    answers = [module(x_BCHW) for module in (one, other)]
    assert torch.equal(*answers)
    for y_BCHW in answers:
        y_BCHW.square().sum().backward()
    for p, same in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, same.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not other(x_BCHW).requires_grad


@pytest.mark.parametrize("pools", [(1, 2), (1, 2, 4)])
def test_paths_run_beside_one_another(pools: tuple[int, ...]) -> None:
    """Each path waits for the others: one after another they would never end."""
    module = DSPP(18, 8, pools).eval()
    module.at_once = True
    meeting = threading.Barrier(len(pools), timeout=60)

    def wait(*_: object) -> None:
        meeting.wait()

    for path in module.paths:
        path.register_forward_pre_hook(wait)
    assert module(torch.randn(1, 18, 8, 8)).shape == (1, 18, 8, 8)


def test_three_paths_share_their_weight_too() -> None:
    paths = [parts(2.0, 0.9, 16), parts(-1.0, 0.5, 8), parts(0.2, 0.1, 4)]
    judged = validity.judge(paths, (1, 2, 4), Window())
    torch.testing.assert_close(judged.weight_PBHW.sum(0), torch.full((1, 16, 16), 3.0))
    assert judged.weight_PBHW[:, 0, 8, 8].argmax() == 0


def test_samples_outside_the_map_are_not_valid() -> None:
    share_BHW = validity.inside(torch.zeros(1, 18, 5, 5), Window())
    assert share_BHW[0, 2, 2] == 1 and share_BHW[0, 0, 0] == pytest.approx(4 / 9)
    assert not validity.inside(torch.full((1, 18, 5, 5), 9.0), Window()).any()


def test_validity_influences_the_result_and_what_the_kernels_learn() -> None:
    gated, implicit = moving(DSPP(18, 16, mode="gate"), 2.0), DSPP(18, 16)
    implicit.load_state_dict(gated.state_dict())
    x_BCHW = torch.randn(2, 18, 8, 8)
    outputs = [module.eval()(x_BCHW) for module in (gated, implicit)]
    assert not torch.allclose(*outputs)
    grads = [
        torch.autograd.grad(y.sum(), module.shared.feature.weight)[0]
        for y, module in zip(outputs, (gated, implicit), strict=True)
    ]
    assert not torch.allclose(*grads)
    assert set(gated.diagnostics) >= {"offset_disagreement", "offset_ratio", "validity_1", "won_2"}


def test_paths_that_agree_make_the_gate_a_plain_dspp() -> None:
    gated, implicit = DSPP(18, 8, mode="gate"), DSPP(18, 8)  # offsets start at zero
    implicit.load_state_dict(gated.state_dict())
    x_BCHW = torch.randn(2, 18, 8, 8)
    torch.testing.assert_close(gated.eval()(x_BCHW), implicit.eval()(x_BCHW))


def test_the_guide_pulls_the_less_valid_path_to_the_other() -> None:
    one, other = parts(3.0, 0.9, 32), parts(-3.0, 0.3, 16)
    for path in (one, other):
        path.offset_B2KHW.requires_grad_()
    validity.guidance(validity.judge([one, other], (1, 2), Window())).backward()
    better, worse = one.offset_B2KHW.grad, other.offset_B2KHW.grad
    assert float(better[0, :, 16, 16].abs().max()) < 1e-9
    assert float(worse[0, :, 8, 8].max()) < 0  # descent raises -3 towards 3


def test_the_guide_is_taken_once_and_only_in_training() -> None:
    module = moving(DSPP(18, 16, mode="gate+guide"), 1.0)
    x_BCHW = torch.randn(2, 18, 8, 8)
    module(x_BCHW)
    (guide,) = take_guides(module)
    guide.backward()
    assert guide.item() > 0 and module.shared.offset.weight.grad.abs().sum() > 0
    assert take_guides(module) == []
    module.eval()(x_BCHW)
    assert take_guides(module) == []


def test_diagnostics_are_there_in_every_mode() -> None:
    net = nn.Sequential(moving(DSPP(18, 16)), moving(DSPP(18, 8)))
    said = inspect(net.train(), torch.randn(1, 18, 8, 8))
    assert {"offset_disagreement", "offset_ratio", "validity_1", "won_1", "won_2"} <= set(said)
    assert "won_3" not in said  # of one of the two only
    assert said["offset_ratio"] > 0 and net.training
    assert inspect(SPP(9), torch.randn(1, 9, 4, 4)) == {}


# -- what it is compared with --------------------------------------------------------------


def test_spp_has_no_convolution_in_its_branches() -> None:
    layers = [m for m in SPP(18).modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in layers] == [(90, 18, (1, 1))]


def test_aspp_has_depthwise_separable_dilated_branches() -> None:
    for stride, rates in ((16, (6, 12, 18)), (8, (12, 24, 36))):
        layers = [m for m in ASPP(18, stride).modules() if isinstance(m, nn.Conv2d)]
        atrous = [m for m in layers if m.groups == 18]
        assert tuple(m.dilation[0] for m in atrous) == rates
        assert all(m.kernel_size == (3, 3) for m in atrous)
        assert all(m.kernel_size == (1, 1) for m in layers if m.groups == 1)
        assert max(m.in_channels for m in layers) == 90


def test_a_layer_stands_alone_where_a_convolution_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 5, 3, padding=1))
    x_BCHW = torch.randn(1, 3, 6, 6)
    shape = net(x_BCHW).shape
    net[2] = SDfConv2d(9, 5)
    assert net(x_BCHW).shape == shape
