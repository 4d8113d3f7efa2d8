"""The table of the line from R-CNN to Faster R-CNN: each step multiplies less or waits less."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_stages_of_all_three_are_told(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "scripts" / "bench_rcnn.py"), "--pictures", "2"]
    line += ["--page", str(tmp_path / "rcnn.md")]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=True)
    assert (tmp_path / "rcnn.md").read_text() == done.stdout[:-1]
    assert re.search(r"\d cores, Linux .* load average [\d.]+ before", done.stdout)
    rows = [row.strip("| ").split(" | ") for row in done.stdout.splitlines() if "R-CNN |" in row]
    assert [row[0] for row in rows] == ["R-CNN", "Fast R-CNN", "Faster R-CNN"]
    proposals, convolutions, regions, answers, together = (
        {row[0]: float(row[place]) for row in rows} for place in range(1, 6)
    )
    assert min(answers.values()) > 0 and min(convolutions.values()) > 0
    count = {row[0]: float(row[-1]) for row in rows}
    # Times depend on what else the machine does; how much is multiplied does not.
    assert count["R-CNN"] > 5 * count["Fast R-CNN"] > 0
    assert count["Faster R-CNN"] < 2 * count["Fast R-CNN"]
    # What is left to wait for is the search, until it is part of the network.
    assert proposals["Fast R-CNN"] > max(convolutions["Fast R-CNN"], regions["Fast R-CNN"])
    assert proposals["Faster R-CNN"] < proposals["Fast R-CNN"] / 4
    assert together["R-CNN"] > together["Fast R-CNN"] > together["Faster R-CNN"]
