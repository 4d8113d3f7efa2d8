"""NUMA nodes: which processors they have, and who stays where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlplatform.memorybox import numa


def machine(root: Path, *lists: str) -> Path:
    for number, text in enumerate(lists):
        (root / f"node{number}").mkdir(parents=True)
        (root / f"node{number}" / "cpulist").write_text(text + "\n")
    return root


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Pretend to have eight processors; keep where this process would go."""
    asked: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: asked.append(set(cpus)))
    return asked


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3", {0, 1, 2, 3}), ("0,2-3,9", {0, 2, 3, 9}), ("5", {5}), ("", set())],
)
def test_lists_of_processors(text: str, cpus: set[int]) -> None:
    assert numa.cpus(text) == cpus


def test_nodes_in_order_without_empty_ones(tmp_path: Path, moved: list[set[int]]) -> None:
    root = machine(tmp_path, "0-3", "4-7", "", *[""] * 8, "8-11")
    assert numa.nodes(root) == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert numa.nodes(tmp_path / "nothing") == [set(range(8))]


def test_neighbours_share_a_node(tmp_path: Path, moved: list[set[int]]) -> None:
    root = machine(tmp_path, "0-3", "4-7")
    for place in range(5):
        numa.stay(place, 5, root)
    assert moved == [{0, 1, 2, 3}] * 3 + [{4, 5, 6, 7}] * 2


def test_one_node_is_left_as_it_is(tmp_path: Path, moved: list[set[int]]) -> None:
    numa.stay(1, 2, machine(tmp_path, "0-7"))
    assert moved == []
