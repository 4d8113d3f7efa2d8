"""Progress: a bar in a terminal, plain lines elsewhere, nothing when not wanted."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from dlplatform import progress
from dlplatform.progress import Live, Plain, describe, open_progress


@pytest.mark.parametrize(
    ("kind", "env", "expected"),
    [
        ("plain", "", Plain),
        ("none", "", Plain),
        ("live", "", Live),
        ("auto", "", Plain),
        ("auto", "live", Live),
        ("auto", "plain", Plain),
    ],
)
def test_kinds(kind: str, env: str, expected: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLP_PROGRESS", env)
    opened = open_progress(kind, 10, 0)
    opened.close()
    assert type(opened.display) is expected  # type: ignore[attr-defined]


def test_plain_lines_come_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("dlplatform.progress.time.monotonic", lambda: now[0])
    shown = Plain(total=200)
    for position in range(1, 13):
        now[0] += 1.0
        shown.update(position, {"loss": "0.5", "val": "-"})
    assert capsys.readouterr().out == "5/200  loss 0.5  val -\n10/200  loss 0.5  val -\n"
    assert progress.PLAIN_EVERY_S == 5.0


def test_none_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = open_progress("none", 10, 0)
    shown.say("words")
    shown.update(5, {})
    shown.close()
    assert capsys.readouterr().out == ""


def test_live_shows_position_figures_and_lines_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = Live(total=200, start=20)
    shown.update(50, {"loss": "0.5000"})
    shown.say("a [bold]path[/] /tmp/x[1]")
    shown.close()
    out = capsys.readouterr().out
    assert "50/200" in out
    assert "0.5000" in out
    assert "a [bold]path[/] /tmp/x[1]" in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h"), "the cursor comes back"


def test_training_goes_on_when_nobody_reads_any_more() -> None:
    line = "from dlplatform.progress import open_progress as o\nimport sys\np = o('plain', 9, 0)\n"
    line += "for n in range(20000): p.say('words ' * 9)\nprint('trained', file=sys.stderr)"
    script = [sys.executable, "-c", line]
    shell = f"{shlex.join(script)} | head -1"
    ended = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert ended.stderr == "trained\n"


def test_settings_on_one_line() -> None:
    assert describe({"name": "easgd", "rate": None, "interval": 2}) == "interval=2"
    assert describe({"name": "alone"}) == ""
