"""HOG and dense SIFT: edges fall into the right orientations, light does not matter."""

from __future__ import annotations

import torch

from trainers.blocks.descriptors import dense_sift, hog


def ramp(horizontal: bool) -> torch.Tensor:
    along = torch.linspace(0, 1, 16)
    picture = along.expand(16, 16) if horizontal else along[:, None].expand(16, 16)
    return picture[None, None]


def test_hog_has_the_size_of_its_blocks_and_unit_histograms() -> None:
    random = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    values = hog(random)
    assert values.shape == (3, 3 * 3 * 4 * 9)
    blocks_NFB = values.view(3, 36, 9)
    assert torch.allclose(blocks_NFB.norm(dim=1), torch.ones(3, 9), atol=1e-3)
    assert torch.allclose(hog(0.5 * random + 0.2), values, atol=1e-3)


def test_an_edge_votes_for_its_own_orientation() -> None:
    for horizontal, expected in ((True, {0, 8}), (False, {4})):
        cells = hog(ramp(horizontal)).view(9, 4, 9).sum((1, 2))
        assert set(cells.nonzero().flatten().tolist()) == expected
    opposite = hog(1 - ramp(horizontal=True))
    assert torch.allclose(opposite, hog(ramp(horizontal=True)), atol=1e-4), "no sign in HOG"


def test_sift_has_128_values_a_sign_and_no_place() -> None:
    values = dense_sift(ramp(horizontal=True))
    assert values.shape == (1, 128) and torch.allclose(values.norm(), torch.tensor(1.0))
    against = dense_sift(1 - ramp(horizontal=True))
    assert float((values * against).sum()) < 0.1
    x_NCHW = torch.zeros(2, 1, 24, 24)
    x_NCHW[0, :, 8:12, 6:10] = 1
    x_NCHW[1, :, 12:16, 10:14] = 1  # moved by one step of the grid
    here, there = dense_sift(x_NCHW)
    assert float((here * there).sum()) > 0.95
