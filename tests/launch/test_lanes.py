"""The lanes of CI: what fails once may have been short of time, what fails twice has failed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ONCE = """
from pathlib import Path

def test_once():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("busy")
"""
FABRIC = """
import pytest

@pytest.mark.rdma
def test_fabric():
    assert True
"""
CASES = {
    "passes alone": (ONCE, 0, "failed at first: 1"),
    "fails": ("def test_never(): assert 0", 1, "failed at first: 1"),
    "does not load": ("import nothing_of_this_name", 1, "failed at first: 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_failure_counts_when_it_comes_twice(tmp_path: Path, case: str) -> None:
    for name in ("scripts/lanes.py", "tests/conftest.py", "tests/support/guest.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    text, code, words = CASES[case]
    (tmp_path / "tests" / "launch").mkdir()
    (tmp_path / "tests" / "launch" / "test_launch.py").write_text(text)
    (tmp_path / "tests" / "test_rest.py").write_text("def test_rest(): pass")
    (tmp_path / "tests" / "test_fabric.py").write_text(FABRIC)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "scripts" / "lanes.py"), "-v", "-p", "no:cacheprovider"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout
    assert len(re.findall(r"test_rest.py::test_rest PASSED", done.stdout)) == 1, "in one piece"
    took = re.findall(r"^lanes: +[\d.]+ s  (.+)$", done.stdout, re.M)
    assert {*took[:3]} == {"rdma", "tests/launch", "tests"}
    assert "tests/test_rest.py::test_rest" in took[3:]
