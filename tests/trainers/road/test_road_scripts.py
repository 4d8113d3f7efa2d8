"""Cells of feature maps in a plane, and the two scripts of the road family in their short form.

Shape legend: B batch, C channels, H height, W width, N cells.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from seldom import LONG
from torch.nn import functional

from trainers.blocks.pixels import stacked
from trainers.data.scenes import some
from trainers.road.cells import cells, coarse_maps, draw_cells, embed, separation
from trainers.road.deformable import DeformableRoad

ROOT = Path(__file__).parents[3]


def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the project with this tree's code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "scripts" / name), *words]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


def test_cells_are_means_with_their_place() -> None:
    maps_BCHW = torch.arange(2 * 2 * 6 * 6).view(2, 2, 6, 6)
    found = cells(maps_BCHW)
    assert found.features_NC.shape == (18, 2)
    assert found.row_N[:9].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.column_N[9:].tolist() == [0, 1, 2] * 3
    assert found.features_NC[5, 1] == pytest.approx(float(maps_BCHW[0, 1, 2:4, 4:].float().mean()))


def test_features_part_by_the_row_they_come_from() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = DeformableRoad()
    x_B3HW, _ = stacked(some(task.scenes("test"), 20))
    net = task.models()["net"]
    found = cells(coarse_maps(net, x_B3HW))
    assert found.features_NC.shape == (180, 72)
    plane_N2 = embed(found.features_NC)
    assert np.isfinite(plane_N2).all() and plane_N2.shape == (180, 2)
    rows, shuffled = separation(plane_N2, found.row_N)
    assert rows > shuffled + 0.1
    picture = draw_cells(found, plane_N2, "untrained")
    assert picture.width > 900 and picture.height > 480


def test_pooled_cells_do_not_depend_on_the_size_of_the_map() -> None:
    maps_BCHW = torch.rand(1, 3, 6, 6)
    large_BCHW = functional.interpolate(maps_BCHW, scale_factor=2, mode="nearest")
    assert np.allclose(cells(maps_BCHW).features_NC, cells(large_BCHW).features_NC, atol=1e-6)


@pytest.mark.slow
def test_the_bench_writes_its_page(tmp_path: Path) -> None:
    done = script("bench_deformable.py", "--page", str(tmp_path / "page.md"))
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "page.md").read_text().splitlines()
    rows = [
        line.split("|")[1:4] for line in lines if line.startswith("| ") and "module" not in line
    ]
    assert len([r for r in rows if r[1].strip() == r[2].strip() != "---:"]) == 12


@LONG
@pytest.mark.slow
def test_the_study_has_the_tables_of_the_patent(tmp_path: Path) -> None:
    short = ("--minibatches", "2", "--tune", "1", "--batch-size", "2")
    done = script("study_modules.py", "--out", str(tmp_path), "--modules", "conv,dspp_ext", *short)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "modules.md").read_text()
    assert "| type | name | applied position | mIoU % |" in text
    assert "| - | Original (convolution) | output stride 16 |" in text
    assert "| Extension | Extended DSPP | output stride 8, 16 |" in text
    assert "| name | layers | real | whole | tuned | lost | won back | real, trained on |" in text
    assert "| Extended DSPP | 5 |" in text
    assert (tmp_path / "modules.png").exists() and (tmp_path / "cells.png").exists()
    wrong = script("study_modules.py", "--out", str(tmp_path), "--modules", "dsp")
    assert wrong.returncode == 2 and "--modules dsp - allowed: conv, df" in wrong.stderr
