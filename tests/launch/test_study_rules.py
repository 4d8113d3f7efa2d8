"""The study of the rules: its runs, its page, its mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tests import the parts of the script, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "rulestudy"]:
        del sys.modules[name]


def study(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "scripts/study_rules.py"), *options]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ, timeout=250)


def test_a_trial_is_repeatable_and_learns() -> None:
    from rulestudy.plan import trial
    from rulestudy.problems import run

    results = [run(trial("adiloco", "digits", 4, 2.0, 0, minibatches=400)) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0].accuracy > 0.5
    assert sum(results[0].steps) == 400
    assert results[0].sent > 4 * 4810


def test_narrow_wires_send_fewer_bytes() -> None:
    from rulestudy.plan import trial
    from rulestudy.problems import run

    sent = {
        wire: run(trial("diloco", "digits", 2, 1.0, 0, minibatches=64, fields={"wire": wire})).sent
        for wire in ("fp32", "bf16", "int8")
    }
    first = 4 * 4816  # the weights that rank 0 writes once, shared by two workers
    assert sent["bf16"] - first / 2 == pytest.approx((sent["fp32"] - first / 2) / 2, rel=0.01)
    assert sent["int8"] - first / 2 < 0.3 * (sent["fp32"] - first / 2)


def test_goodput_of_restart_all_agrees_with_its_closed_form() -> None:
    from rulestudy.goodput import FIELD, Site, boxes, closed_form, restart_all

    for workers in (1024, 65536):
        site = Site(workers)
        hours = 400 * FIELD / workers / 3600
        alone, others = closed_form(site)
        seeds = range(6)
        assert sum(restart_all(site, hours, s) for s in seeds) / 6 == pytest.approx(alone, abs=0.02)
        assert sum(boxes(site, hours, s) for s in seeds) / 6 == pytest.approx(others, abs=0.02)
        assert others > alone


def test_a_rule_whose_long_run_diverged_runs_again_at_half_its_rate() -> None:
    from rulestudy import plan

    done = {key: {"accuracy": 0.9, "loss": 0.1} for key in plan.tuning("digits")}
    usual = plan.chosen("digits", "alone", 1, done)
    assert plan.steady("digits", "alone", 1, done) == usual
    for factor, accuracy in ((usual, 0.1), (usual / 2, 0.9)):  # it has diverged, it has not again
        done["long/digits/alone/0"] = {"factor": factor, "accuracy": accuracy}
        assert plan.steady("digits", "alone", 1, done) == usual / 2
    done["long/digits/alone/0"] = {"factor": usual, "accuracy": 0.9}
    assert plan.steady("digits", "alone", 1, done) == usual


def test_a_typo_is_one_line() -> None:
    done = study("--json", "x.json", "--only", "tset")
    assert done.returncode == 2
    assert "--only tset - allowed: tune, test, slow, wire, long, real, goodput" in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_the_study_writes_its_page_and_goes_on_where_it_was(tmp_path: Path) -> None:
    page, found = tmp_path / "rules.md", tmp_path / "found.json"
    page.write_text((ROOT / "docs/results/rules.md").read_text())
    words = (
        "--json",
        str(found),
        "--problems",
        "digits",
        "--rules",
        "easgd",
        "--minibatches",
        "60",
    )
    assert study(*words, "--only", "tune").returncode == 0
    tuned = json.loads(found.read_text())
    assert len(tuned) == 14 and {key.split("/")[2] for key in tuned} == {"alone", "easgd"}
    done = study(*words, "--only", "tune,test,slow", "--page", str(page))
    assert done.returncode == 0, done.stderr
    assert "| `easgd` |" in page.read_text()
    assert (tmp_path / "rules.png").stat().st_size > 10_000
