"""The functions of the memory box, named as in the specification: B17 to B19 (whole programs)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tinyjobs import attach, together
from tinyjobs import place as job_place
from torch import nn

from dlplatform import cli
from dlplatform.job import Job
from dlplatform.memorybox.process import Boxes


def test_b17_plain_library(tmp_path: Path) -> None:
    """The example of docs/manual_box.md: two programs share a vector, and neither loads torch."""
    page = Path(__file__).parents[2] / "docs" / "manual_box.md"
    found = re.search(r'^```python\n(""".*?)^```', page.read_text(), re.M | re.S)
    assert found
    script = tmp_path / "plain.py"
    script.write_text(found[1])
    assert len(found[1].splitlines()) <= 30
    for transport in ("shm", "tcp"):
        with Boxes(1, transport) as boxes:
            env = {**os.environ, "DLP_SECRET": boxes.secret}
            line = [sys.executable, str(script), boxes.addresses[0]]
            programs = [
                subprocess.Popen([*line, rank], env=env, stdout=subprocess.PIPE, text=True)
                for rank in "01"
            ]
            said = [program.communicate(timeout=60)[0] for program in programs]
            assert [program.returncode for program in programs] == [0, 0]
            assert said == ["worker 0 reads 3.0\n", "worker 1 reads 3.0\n"]


@pytest.mark.parametrize("rule", ["alone", "ssgd", "asgd", "easgd", "hybrid"])
def test_b18_transparency(rule: str) -> None:
    """Parameters, their gradients and the optimizer keep identity, type and device.

    The whole script that stays as it is: tests/dlplatform/test_two_lines.py.
    """

    def body(job: Job) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        before = [(p, type(p), p.dtype, p.device, p.shape) for p in model.parameters()]
        names, forwards = list(model.state_dict()), [one.forward for one in model]
        net = attach(job, rule, model, partial(torch.optim.SGD, lr=0.1))
        net.step(model(torch.randn(5, 3)).square().sum())
        after = [(p, type(p), p.dtype, p.device, p.shape) for p in model.parameters()]
        assert all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before, after, strict=True))
        assert list(model.state_dict()) == names
        assert [one.forward for one in model] == forwards
        assert type(net.optimizer) is torch.optim.SGD
        net.rule.finish()
        job.groups.clear()

    with job_place() as where:
        together(1, where, body)


def test_b19_reported_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes per second beside the machine's bound are in the report of ``dlp bench``.

    Figures of several boxes, each behind a link of its own, are in docs/benchmarks/box.md (rows
    ``links`` of scripts/bench_box.py): on one host the boxes share one memory.
    """
    file = tmp_path / "bench.json"
    words = ("--sizes", "1M", "--transports", "shm", "--repeat", "1", "--json", str(file))
    assert cli.main(["bench", *words]) == 0
    capsys.readouterr()
    rows = {row["op"]: row for row in json.loads(file.read_text())["rows"]}
    for op in ("read", "write"):
        assert rows[op]["ours"] > 0
        assert rows[op]["bound"] > 0
    page = Path(__file__).parents[2] / "docs" / "benchmarks" / "box.md"
    assert "`links`" in page.read_text()
