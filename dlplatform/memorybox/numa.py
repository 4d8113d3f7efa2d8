"""Numa: which processors share memory. A box, or a worker, keeps to those of one node.

Memory comes from the node of the processor that touches it first, so a process that stays on one
has its memory near. Where there is one node only, or the process is confined to one already,
nothing is done.
"""

from __future__ import annotations

import os
from pathlib import Path

NODES = Path("/sys/devices/system/node")


def nodes(root: Path = NODES) -> list[set[int]]:
    """Return the processors of every node that this process may use."""
    mine = os.sched_getaffinity(0)
    found = [
        (int(path.name[4:]), cpus((path / "cpulist").read_text()) & mine)
        for path in root.glob("node[0-9]*")
    ]
    return [usable for _, usable in sorted(found) if usable] or [mine]


def cpus(text: str) -> set[int]:
    """Return the numbers in a list such as ``0-3,8``."""
    spans = [part.partition("-") for part in text.strip().split(",") if part]
    return {n for first, _, last in spans for n in range(int(first), int(last or first) + 1)}


def stay(place: int, places: int, root: Path = NODES) -> None:
    """Keep this process, one of so many neighbours, to its node.

    Neighbours in a row share a node, as evenly as there are nodes.
    """
    found = nodes(root)
    if len(found) > 1:
        os.sched_setaffinity(0, found[place * len(found) // max(places, 1) % len(found)])
