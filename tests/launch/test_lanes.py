"""The lanes of CI: what fails once may have been short of time, what fails twice has failed."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import guest
import pytest
from liverun import processes, until

ROOT = Path(__file__).resolve().parents[2]
ONCE = """
from pathlib import Path

def test_once():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("busy")
"""
LONGEST = """
from pathlib import Path
import time

def test_longest():
    Path(__file__).with_suffix(".seen").touch()
    time.sleep(100)
"""
CASES = {
    "passes alone": (ONCE, 0, "failed at first: 1"),
    "fails": ("def test_never(): assert 0", 1, "failed at first: 1"),
    "does not load": ("import nothing_of_this_name", 1, "failed at first: 0"),
}


def placed(folder: Path, launch: str) -> list[str]:
    """Put lanes with little to do into a folder; return their command."""
    names = "pyproject.toml", "scripts/lanes.py", "tests/conftest.py", "tests/support/guest.py"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "tests" / "launch").mkdir()
    (folder / "tests" / "launch" / "test_launch.py").write_text(launch)
    (folder / "tests" / "test_rest.py").write_text("def test_rest(): pass")
    return [sys.executable, str(folder / "scripts" / "lanes.py"), "-v", "-p", "no:cacheprovider"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_failure_counts_when_it_comes_twice(tmp_path: Path, case: str) -> None:
    text, code, words = CASES[case]
    line = placed(tmp_path, text)
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout
    assert len(re.findall(r"test_rest.py::test_rest PASSED", done.stdout)) == 1, "in one piece"
    took = re.findall(r"^lanes: +[\d.]+ +[\d.]+  (.+)$", done.stdout, re.M)
    assert {*took[:2]} == {"tests/launch", "tests"}
    assert "tests/test_rest.py::test_rest" in took[2:]


@pytest.mark.parametrize(
    ("words", "apart"),
    [([], []), (["--slow"], ["rdma"]), (["--slow", "--types"], ["mypy", "rdma"])],
)
def test_each_test_is_in_one_piece(
    words: list[str], apart: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", ["lanes.py", *words])
    lanes = importlib.import_module("lanes")
    pieces = lanes.parts()
    assert [piece.name for piece in pieces] == [*apart, *lanes.PLACES]
    for piece in pieces[len(apart) :]:
        assert ("not rdma" in piece.command) == ("rdma" in apart)


@pytest.mark.slow
def test_a_wrong_type_counts_though_all_tests_have_passed(tmp_path: Path) -> None:
    line = [*placed(tmp_path, "def test_one(): pass"), "--types"]
    (tmp_path / "typed.py").write_text("one: int = 'one'")
    (tmp_path / "mypy.ini").write_text("[mypy]\nfiles = typed.py\n")
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "typed.py:1: error:" in done.stdout and "failed at first: 0" in done.stdout


@pytest.mark.slow
def test_lanes_that_are_stopped_leave_nothing(tmp_path: Path) -> None:
    line = placed(tmp_path, LONGEST)
    lanes = subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=tmp_path)
    seen = tmp_path / "tests" / "launch" / "test_launch.seen"
    until(seen.exists)
    lanes.terminate()
    assert lanes.wait(60) == 130
    assert not processes(str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lets a process go first")
def test_the_guest_goes_before_everything_else() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        try:
            guest.first(process.pid)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) == guest.FIRST
            session = Path(f"/proc/{process.pid}/autogroup")
            assert not session.exists() or f"nice {guest.FIRST}\n" in session.read_text()
        finally:
            process.kill()
