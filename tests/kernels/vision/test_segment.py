"""First regions of pictures: C against the definition, and by hand."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.vision import native, reference


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pixels=st.integers(1, 60),
    scale=st.sampled_from([0.0, 1.0, 20.0]),
    least=st.integers(0, 6),
)
def test_c_joins_what_the_definition_joins(
    seed: int, pixels: int, scale: float, least: int
) -> None:
    random = np.random.default_rng(seed)
    places = torch.from_numpy(random.integers(0, pixels, (2, 4 * pixels)))
    weights = np.sort(random.uniform(0, 5, 4 * pixels).round(int(random.integers(0, 4))))
    edges = (torch.tensor(weights, dtype=torch.float32), *places)
    ours = native.segment(*edges, pixels, scale, least)
    assert ours.equal(reference.segment(*edges, pixels, scale, least))


@pytest.mark.parametrize("who", [native, reference])
@pytest.mark.parametrize(
    ("scale", "least", "regions"), [(1.0, 0, [0, 0, 2, 2]), (9.0, 0, [0] * 4), (1.0, 3, [0] * 4)]
)
def test_four_pixels_in_a_row(
    who: ModuleType, scale: float, least: int, regions: list[int]
) -> None:
    """Two pairs that are alike: apart, unless the scale is large or pairs are too small."""
    weights = torch.tensor([0.5, 0.5, 4.0])
    edges = (weights, torch.tensor([0, 2, 1]), torch.tensor([1, 3, 2]))
    assert who.segment(*edges, 4, scale, least).tolist() == regions
