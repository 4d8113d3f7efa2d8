"""The demonstration of parallel computing: it runs, and jobs at once end as they do alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_parallel.py"


@pytest.mark.slow
@pytest.mark.long
def test_jobs_at_once_and_divided_ones_end_as_in_turn(tmp_path: Path) -> None:
    page = tmp_path / "parallel.md"
    line = [sys.executable, str(SCRIPT), "--quick", "--force", "--page", str(page)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [row.split(" | ") for row in done.stdout.splitlines()]
    assert [row[0].split()[0] for row in rows] == ["two", "one", "four"]
    assert [row[-1] for row in rows] == ["yes", "yes", "yes"]
    for name, turn, once, gain, share, _ in rows:
        seconds = float(turn.removesuffix(" s")), float(once.removesuffix(" s"))
        assert min(seconds) > 0 and float(gain) > 0 and share.endswith("%")
        assert name in page.read_text()
    assert "to be measured again" in page.read_text(), "a smoke run says that it is one"
