"""The table of detectors in torch and in ONNX Runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--seconds", "0", "--side", "64", "--width", "16", "--levels", "3", "--threads", "1")


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "scripts" / "bench_detectors.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=250)


@pytest.mark.slow
@pytest.mark.long
def test_both_runtimes_are_measured_in_every_size(tmp_path: Path) -> None:
    files = ("--page", str(tmp_path / "page.md"), "--json", str(tmp_path / "rows.json"))
    done = bench("face/detection", "--sized-only", "--sizes", "tiny,19-slim", *QUICK, *files)
    assert done.returncode == 0, done.stderr
    page, rows = (
        (tmp_path / "page.md").read_text(),
        json.loads((tmp_path / "rows.json").read_text()),
    )
    assert done.stdout.strip() in page
    assert "load average" in page and "cores, Linux" in page
    tiny, slim = rows["sized"]
    assert rows["default"] == [] and [tiny["size"], slim["size"]] == ["tiny", "19-slim"]
    assert 0 < tiny["values"] < slim["values"] and 0 < tiny["products"] < slim["products"]
    for row in (tiny, slim):
        assert row["objects"] == 10, "heads of regions have work, and the limit holds"
        assert list(row["milliseconds"]) == ["torch, 1", "ONNX Runtime, 1"]
        assert all(0 < best <= middle for best, middle in row["milliseconds"].values())


def test_what_cannot_be_measured() -> None:
    done = bench("zoo/digits", *QUICK)
    assert done.returncode == 1
    assert done.stderr.startswith("zoo/digits is no detector - allowed: zoo/rcnn, ")
    assert len(done.stderr.splitlines()) == 1
