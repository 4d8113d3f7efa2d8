from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seldom import LONG

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_train.py"
GROUPS = ["mlp", "vgg", "cnn", "digits", "local", "scaling", "gpu", "uneven"]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tests import the parts of the script, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    parts = ("boxbench", "trainbench", "bench_train")
    for name in [name for name in sys.modules if name.split(".")[0] in parts]:
        del sys.modules[name]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(line, capture_output=True, text=True)


def row(**fields: Any) -> Any:
    from trainbench.rows import Row

    return Row("mlp", "name", "peer", **fields)


def report_of(*rows: Any, quick: bool = False, load: float = 0.5) -> dict[str, Any]:
    from boxbench.report import Watch
    from trainbench import report

    watch = Watch()
    watch.load = load
    return report.data(rows, watch, quick)


# -- rows -----------------------------------------------------------------------------------


def test_rates_are_better_when_higher_and_seconds_when_lower() -> None:
    fast = row(required=1.1, ours=[90.0, 120.0, 100.0], theirs=[100.0, 80.0, 90.0]).figures()
    assert (fast["ours_best"], fast["theirs_best"], fast["ratio_best"]) == (120, 100, 1.2)
    assert (fast["reached"], fast["ratio_median"]) == (True, pytest.approx(100 / 90))
    slow = row(unit="s", required=1.0, ours=[2.0, 4.0], theirs=[1.0, 8.0]).figures()
    assert (slow["ratio_best"], slow["ratio_median"]) == (0.5, 1.5)
    assert (slow["reached"], slow["reached_median"]) == (False, True)


def test_what_is_missing_says_why() -> None:
    from trainbench import report

    figures = row(missing="no such peer").figures()
    assert "not measured: no such peer" in report.cells(figures)
    assert figures["reached"] is None
    assert row().figures()["missing"] == "no figures"


def test_the_slowest_worker_counts_in_every_turn() -> None:
    from trainbench.contest import slowest

    assert slowest([{"a": [1.0, 5.0]}, {"a": [2.0, 3.0]}]) == {"a": [2.0, 5.0]}


# -- the model ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 8, 32, 1024])
def test_byteps_has_the_ring_and_the_servers_as_its_limits(n: int) -> None:
    from trainbench import model

    ring, servers = model.byteps(n, 0, 4e8, 1e9), model.byteps(n, n, 4e8, 1e9)
    assert ring == pytest.approx(model.ring(n, 4e8, 1e9))
    assert servers == pytest.approx(model.pushpull(n, n, 4e8, 1e9)) == pytest.approx(0.4)


def test_the_model_meets_the_published_tables() -> None:
    from trainbench import published

    found = {check.what: check for check in published.checks()}
    for what, check in found.items():
        if what.startswith(("BytePS", "8 ", "32 ")):
            assert check.ratio == pytest.approx(1, abs=0.005), what
        if what.startswith("ps-lite"):
            assert check.ratio == pytest.approx(1, abs=0.07), what
    (resnet,) = [check for what, check in found.items() if "ResNet-50, 16" in what]
    assert resnet.model == pytest.approx(0.56, abs=0.03)
    (vgg,) = [check for what, check in found.items() if "VGG16, 2 workers" in what]
    assert vgg.model < vgg.published  # a bound


def test_an_exchange_hides_until_the_boxes_are_the_bound() -> None:
    from trainbench.model import Net, easgd, hybrid, hybrid_nodes, ssgd

    net = Net(workers=8, boxes=1, box_rate=100.0)
    assert easgd(net, 1.0, 12.5) == 1.0
    assert easgd(net, 1.0, 25.0) == 2.0
    assert easgd(net, 1.0, 25.0, interval=4) == 1.25
    assert easgd(Net(8, 2, 100.0), 1.0, 25.0) == 1.0
    assert easgd(Net(8, 1, 100.0, duplex=False), 1.0, 12.5) == 2.0
    assert easgd(Net(8, 1, 100.0, memory_rate=100.0), 1.0, 12.5) == 4.0  # 4 streams
    assert ssgd(net, 1.0, 12.5) == 3.0
    assert hybrid(net, 1.0, 12.5, group=8) > 3.0
    assert hybrid_nodes(net, 1.0, 100.0, group=8) == 1.0


def test_the_worker_link_counts_when_boxes_are_many() -> None:
    from trainbench.model import Net

    assert Net(8, 8, 100.0, worker_rate=10.0).one_way(50.0) == 5.0
    assert Net(8, 1, 100.0, worker_rate=100.0).one_way(50.0) == 4.0


def test_what_is_needed_keeps_what_was_asked_for() -> None:
    from trainbench import model

    for need in model.needs():
        kept = model.efficiency(need.network, need.workers, need.boxes, 1)
        assert kept >= 0.97 - 1e-6
        assert need.boxes == 1 or model.efficiency(need.network, need.workers, 1, 1) < 0.97
        assert model.efficiency(need.network, need.workers, need.few, need.interval) >= 0.97 - 1e-6
        assert 0 < need.ssgd < 1


def test_the_emulation_keeps_the_published_ratio() -> None:
    from trainbench import published, scaling

    assert published.link_share("Inception-v1") == pytest.approx(8.0 / 258.6, rel=0.01)
    assert published.link_share("VGG16") == pytest.approx(82.5 / 389.8, rel=0.01)
    for case in scaling.CASES:
        way = case.size / scaling.RATE
        assert way / case.compute == pytest.approx(published.link_share(case.net))
        assert 0 < case.predicted() <= 1
    ends = [0.0, 9.0, 10.0, 11.0, 12.0, 13.0]
    assert scaling.speed({"ends": ends}) == pytest.approx(1.0)  # the first two are left out


# -- pages ----------------------------------------------------------------------------------


def test_pages_keep_what_is_around_their_tables(tmp_path: Path) -> None:
    from trainbench import report

    (tmp_path / "benchmarks").mkdir()
    for name in ("benchmarks/train.md", "scaling.md"):
        (tmp_path / name).write_text((ROOT / "docs" / name).read_text())
    rows = [
        row(required=1.0, ours=[2.0], theirs=[1.0], predicted=1.9, note="so"),
        row(missing="why not"),
    ]
    rows[0].name = "a row"
    found = report_of(*rows)
    for _ in range(2):
        report.write_pages(tmp_path, found)
        page = (tmp_path / "benchmarks" / "train.md").read_text()
        assert page.startswith("# Whole trainings") and "## Emulated accelerators" in page
        assert (
            "| a row | 2, 2 samples/s | peer | 1, 1 samples/s | 2.00 | 2.00 | 1.00 | yes |" in page
        )
        assert "1 of 1 rows" in page and "- a row / peer: so" in page
        scaling = (tmp_path / "scaling.md").read_text()
        assert "| a row | peer | 1.90 | 2.00 | +5% |" in scaling
        assert "ps-lite PR #151" in scaling and "## Where the model breaks" in scaling
    for picture in ("benchmarks/train.png", "scaling.png", "scaling_plans.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    from trainbench import report

    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no place for train"):
        report.put(page, "train", "text")
    assert page.read_text() == "nothing\n"


def test_smoke_runs_and_busy_machines_are_not_published() -> None:
    from trainbench import report

    good = row(ours=[1.0], theirs=[1.0])
    assert "not to be published" not in report.verdict(report_of(good))
    assert "a smoke run: not to be published" in report.verdict(report_of(good, quick=True))
    busy = report_of(good) | {"publishable": False}
    assert "above 2.5: not to be published" in report.verdict(busy)


def test_pages_are_not_written_from_a_busy_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_train

    file = tmp_path / "train.json"
    file.write_text(json.dumps(report_of(row(ours=[1.0], theirs=[1.0])) | {"publishable": False}))
    assert bench_train.main(["--from", str(file), "--page", str(tmp_path)]) == 3
    assert "a busy machine (load average 0.5 before) - allowed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


def test_the_page_explains_every_group() -> None:
    text = (ROOT / "docs" / "benchmarks" / "train.md").read_text()
    usage = run("--help").stdout.partition("groups of rows:")[2]
    names = [line.split()[0] for line in usage.splitlines() if line.startswith("  ")]
    assert names == GROUPS
    assert not [name for name in names if f"`{name}`" not in text]


# -- the command line -----------------------------------------------------------------------


def test_a_mistyped_group_is_one_line() -> None:
    done = run("--only", "scalling")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("bench_train: error: --only scalling: no such group; closest: scaling")
    assert " - allowed: mlp, vgg" in line and " - do: " in line


def test_a_busy_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_train

    monkeypatch.setattr(bench_train.bench.os, "getloadavg", lambda: (2.51, 0, 0))
    assert bench_train.main(["--only", "mlp"]) == 3
    assert "load average 2.51 - allowed: up to 2.5" in capsys.readouterr().err


def test_a_group_that_fails_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_train
    from trainbench.rows import Settings

    monkeypatch.setitem(bench_train.GROUPS, "mlp", ("contest.nothing", "text"))
    (found,) = bench_train.measure("mlp", Settings())
    assert found.missing.startswith("AttributeError: ")


@pytest.mark.slow
@pytest.mark.parametrize("names", ["mlp", pytest.param("mlp,scaling", marks=LONG)])
def test_a_quick_run_gives_json_and_a_table(names: str, tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    names = names if os.geteuid() == 0 else "mlp"  # scaling makes namespaces
    done = run("--quick", "--force", "--only", names, "--json", str(file))
    assert done.returncode == 0, done.stderr
    data = json.loads(file.read_text())
    assert data["quick"]
    for found in data["rows"]:
        assert not found["missing"] or "namespaces" in found["missing"], found
        assert found["missing"] or math.isfinite(found["ratio_best"])
    assert {found["group"] for found in data["rows"]} == set(names.split(","))
    assert "torch DDP, gloo on lo" in done.stdout
    assert "not to be published" in done.stdout
    again = run("--from", str(file))
    assert "torch DDP, gloo on lo" in again.stdout
