from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_box.py"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tests import the parts of the script, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "boxbench"]:
        del sys.modules[name]


def run(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **env})


def row(**fields: Any) -> Any:
    from boxbench.rows import Row

    return Row("group", "name", "peer", **fields)


def test_ratios_are_of_minima_and_of_medians() -> None:
    found = row(required=1.5, ours=[2.0, 1.0, 4.0], theirs=[3.0, 2.0, 2.5]).figures()
    assert (found["ours_min"], found["theirs_min"], found["ratio_min"]) == (1, 2, 2)
    assert (found["ours_median"], found["theirs_median"], found["ratio_median"]) == (2, 2.5, 1.25)
    assert found["reached"] is True
    assert found["reached_median"] is False
    assert found["turns"] == 3


def test_a_row_without_a_requirement_is_not_judged() -> None:
    assert row(ours=[1.0], theirs=[2.0]).figures()["reached"] is None


@pytest.mark.parametrize(("amount", "good"), [(100.0, True), (101.0, True), (98.9, False)])
def test_amounts_must_be_as_expected_both_ways(amount: float, good: bool) -> None:
    found = row(required=1.0, within=0.01, ours=[amount], theirs=[100.0]).figures()
    assert found["ratio_min"] == pytest.approx(amount / 100)
    assert found["reached"] is good


def test_limits_and_nothing_at_all() -> None:
    from boxbench.rows import limit

    assert limit(row(), 0.3, [0.2, 0.4]).figures()["reached"] is True
    assert limit(row(), 0.3, [0.31, 0.4]).figures()["reached"] is False
    none = limit(row(unit="B"), 10.0, [0.0]).figures()
    assert none["reached"] is True
    assert none["ratio_min"] is None  # no number is infinite in JSON


def test_what_is_missing_says_why() -> None:
    from boxbench import report, rows

    (found,) = rows.missing(rows.Missing("no  such\npeer"), [row(required=2.0)])
    assert found.figures()["reached"] is None
    assert "not measured: no such peer" in report.cells(found.figures())


def test_calls_take_turns_after_a_first_untimed_one() -> None:
    from boxbench.rows import fastest, turns

    order: list[str] = []
    times = turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "ab" * 4
    assert [len(times[name]) for name in "ab"] == [3, 3]
    assert fastest({"slow": [2.0, 3.0], "fast": [9.0, 1.0]}) == "fast"


def test_the_slowest_rank_counts_in_every_turn() -> None:
    from boxbench.ranks import slowest

    assert slowest([{"a": [1.0, 5.0]}, {"a": [2.0, 3.0]}]) == {"a": [2.0, 5.0]}


@pytest.mark.parametrize(
    ("unit", "least", "middle", "text"),
    [
        ("s", 3.1e-6, 12.0e-6, "3.1, 12 us"),
        ("s", 0.0123, 0.4, "12.3, 400 ms"),
        ("B", 16777324.0, 16777324.0, "16, 16 MiB"),
        ("B", 0.0, 0.0, "0, 0 B"),
    ],
)
def test_amounts_read_well(unit: str, least: float, middle: float, text: str) -> None:
    from boxbench import report

    assert report.amounts(unit, least, middle) == text


def test_the_bounds_compute_what_they_claim() -> None:
    import ctypes

    from boxbench.memory import filled, loop

    x, y = filled(8), filled(8)
    (a,), (b,) = ((ctypes.c_float * 1).from_address(m.address) for m in (x, y))
    loop("axpy")(y.address, x.address, 8)
    after = (ctypes.c_float * 8).from_address(y.address)
    assert list(after) == pytest.approx([a + b] * 8)
    loop("elastic", ctypes.c_float)(y.address, x.address, 8, 0.5)
    assert after[7] == pytest.approx(1.5 * a)
    loop("pull", ctypes.c_float)(y.address, x.address, 8, 1.0)
    assert after[0] == pytest.approx(0)


def test_a_page_keeps_what_is_around_its_table(tmp_path: Path) -> None:
    from boxbench import report

    page, rows = tmp_path / "page.md", [row(required=1.0, ours=[1.0], theirs=[2.0], note="so")]
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    found = report.data(rows, report.Watch(), 1)
    for _ in range(2):
        report.write_markdown(page, found)
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n")
        assert "| name | 1, 1 s | peer | 2, 2 s | 2.00 | 2.00 | 1.00 | yes |" in text
        assert "old" not in text and "1 of 1 rows" in text and "- name / peer: so" in text
    json.dumps(found, allow_nan=False)


def test_the_page_of_the_benchmark_explains_every_group() -> None:
    text = (ROOT / "docs" / "benchmarks" / "box.md").read_text()
    usage = run("--help").stdout.partition("groups of rows:")[2]
    names = [line.split()[0] for line in usage.splitlines() if line.startswith("  ")]
    assert len(names) == 14
    assert not [name for name in names if f"| `{name}` |" not in text]


def test_unknown_groups_are_refused() -> None:
    done = run("--only", "start,speed")
    assert done.returncode == 2
    assert "--only speed: no such group - allowed: copy, axpy" in done.stderr


def test_a_busy_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_box

    monkeypatch.setattr(bench_box.bench.os, "getloadavg", lambda: (2.51, 0, 0))
    assert bench_box.main(["--only", "small"]) == 3
    assert "load average 2.51 - allowed: up to 2.5" in capsys.readouterr().err
    del sys.modules["bench_box"]


def test_a_quick_run_gives_json_a_page_and_a_picture(tmp_path: Path) -> None:
    made = {name: tmp_path / f"box.{name}" for name in ("json", "md", "png")}
    done = run(
        *("--quick", "--force", "--only", "small,start", "--json", str(made["json"])),
        *("--markdown", str(made["md"]), "--plot", str(made["png"])),
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(made["json"].read_text())
    assert [row["group"] for row in data["rows"]] == ["small"] * 2 + ["start"] * 3
    for found in data["rows"]:
        assert not found["missing"]
        assert found["turns"] == len(found["ours"]) == 3
        assert 0 < found["ours_min"] <= found["ours_median"]
    assert data["publishable"] == (data["load_before"] <= 2.5)
    assert "box start to first answer" in made["md"].read_text()
    assert made["png"].read_bytes().startswith(b"\x89PNG")
    again = run("--from", str(made["json"]))
    assert "box start to first answer" in " ".join(again.stdout.split())
