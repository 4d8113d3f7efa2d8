"""Short runs of the published sizes, and the rows of kernels that need a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from tinyjobs import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tests import the parts of the script, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fullbench"]:
        del sys.modules[name]


def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "scripts" / name), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=250)


def test_every_published_size_has_its_data() -> None:
    from fullbench.recipes import RECIPES, published

    assert published() == list(RECIPES)


def test_figures_leave_the_warm_up_out(tmp_path: Path) -> None:
    from fullbench.runs import figures

    (tmp_path / "config.json").write_text(json.dumps({"task": {"batch_size": 8}}))
    ticks = [
        {"minibatch": n, "train/loss": 3.0 - n, "time/step_s": s, "time/exchange_s": 0.1}
        for n, s in enumerate((9.0, 0.4, 0.5, 2.0))
    ]
    lines = [*ticks, {"minibatch": 4, "val/accuracy": 0.1}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = figures(tmp_path, 4)
    assert found["step_s"] == 0.5 and found["samples_per_s"] == 16.0
    assert found["exchange_share"] == 0.2 and found["trained"]
    assert (found["loss_first"], found["loss_last"]) == (3.0, 0.0)
    path.write_text(json.dumps(ticks[0]) + "\n")
    assert figures(tmp_path, 4)["step_s"] is None and not figures(tmp_path, 4)["trained"]
    (tmp_path / "result.json").write_text(json.dumps({"seconds": 2.0, "score": 0.5}))
    found = figures(tmp_path, 4)
    assert found["step_s"] == 0.5 and found["how"] == "mean with the warm-up" and found["trained"]


@pytest.mark.slow
@pytest.mark.long
def test_a_recipe_trains_and_one_that_fails_says_why(tmp_path: Path) -> None:
    words = ("--recipes", "sensors_full", "--minibatches", "3", "--device", "cpu")
    done = script("bench_full.py", *words, "--json", str(tmp_path / "full.json"), "run.threads=1")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "full.json").read_text())["rows"]
    assert row["values"] == 212_827 and row["batch"] == 100 and row["trained"]
    assert row["samples_per_s"] > 0 and 0 < row["reading_s"] < row["step_s"]
    failed = script("bench_full.py", *words, "task.units=0")
    assert failed.returncode == 1
    assert "FAILED: dlp: error: task.units=0 cannot work - allowed: 1 to 4096" in failed.stdout


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_ends_with_the_bench(how: signal.Signals, tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "scripts/bench_full.py"), "--recipes", "sensors_full"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([*line, "--minibatches", "100000", "--device", "cpu"], env=env) as bench:
        until(lambda: list(tmp_path.glob("fullbench-*/run/metrics.jsonl")))
        (trains,) = psutil.Process(bench.pid).children()
        bench.send_signal(how)
    assert bench.returncode == (143 if how == signal.SIGTERM else -how)
    until(lambda: not trains.is_running())
    assert bool(list(tmp_path.iterdir())) == (how == signal.SIGKILL)


def test_an_unknown_recipe_is_refused_in_one_line() -> None:
    wrong = script("bench_full.py", "--recipes", "alexnet_full")
    assert wrong.returncode == 2
    assert "--recipes alexnet_full: no such recipe - allowed: zoo/resnet_full" in wrong.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernel_rows_for_a_gpu_are_left_out_without_one() -> None:
    done = script("bench_kernels.py", "--only", "gpu")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines() == [
        "gpu: left out, this machine has no GPU that torch and Triton can use"
    ]
