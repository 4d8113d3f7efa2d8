"""NUMA nodes: which processors they have, and who stays where."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dlplatform.memorybox import numa
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes


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


FLOATS = 4 << 20


def near(pid: int, least: int) -> set[int]:
    """Return the nodes that hold pages of a process's mappings of at least so many of them."""
    text = Path(f"/proc/{pid}/numa_maps").read_text()
    spans = [dict(re.findall(r"N(\d+)=(\d+)", line)) for line in text.splitlines()]
    large = [span for span in spans if sum(map(int, span.values())) >= least]
    return {int(node) for span in large for node in span}


@pytest.mark.rdma  # the guest has two nodes, and so may a machine with a card
def test_each_box_has_its_processors_and_its_memory_on_a_node_of_its_own() -> None:
    found = numa.nodes()
    if len(found) < 2:
        pytest.skip("this machine has one NUMA node")
    with Boxes(2, "tcp") as boxes:
        pids = [process.pid for process in boxes.processes]
        assert [os.sched_getaffinity(pid) for pid in pids] == found[:2]
        cluster = Cluster(boxes.addresses, "job", boxes.secret.encode(), 60)
        cluster.create("weights", 2 * FLOATS)
        pages = 4 * FLOATS // os.sysconf("SC_PAGESIZE")
        assert [near(pid, pages) for pid in pids] == [{0}, {1}]
        cluster.close()
