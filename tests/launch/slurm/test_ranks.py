"""Ranks that people start themselves inside Slurm: srun, and mpirun in a batch script."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from liverun import DLP, MPIRUN
from seldom import LONG
from slurmhere import Here

pytestmark = pytest.mark.timeout(700)
SCRIPT = """
import json, torch, dlplatform
from dlplatform.job import _current

job = dlplatform.init()
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer = dlplatform.distribute(optimizer, model, rule="hybrid")
for step in range(5):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
world, (_, rule) = job.world, job.groups["main"]
told = [world.launcher, world.rank, world.size, world.local_rank, world.local_size, world.node]
json.dump([*told, list(rule.company.ranks), job.cluster.transports[0].uri.split(":")[0]],
          open(f"said-{world.rank}", "w"))
"""


def said(folder: Path, size: int) -> list[list[object]]:
    return [json.loads((folder / f"said-{rank}").read_text()) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mpi", [pytest.param("none", marks=LONG), pytest.param("pmi2", marks=LONG), "pmix"]
)
def test_srun_starts_a_script_of_two_lines(here: Here, tmp_path: Path, mpi: str) -> None:
    """Nodes on one machine are different nodes: each has a group of its own."""
    before = ("srun", f"--mpi={mpi}", "-N2", "-n3", "--nodelist=n6,n7")
    done = here.python(SCRIPT, *before, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = said(tmp_path, 3)
    assert [one[:5] for one in found] == [
        ["Slurm", 0, 3, 0, 2],
        ["Slurm", 1, 3, 1, 2],
        ["Slurm", 2, 3, 0, 1],
    ]
    assert [str(one[5]).partition("@")[0] for one in found] == ["n6", "n6", "n7"]
    assert [one[6] for one in found] == [[0, 1], [0, 1], [2]]
    assert {one[7] for one in found} == {"tcp"}
    assert not list(tmp_path.glob(".dlp-*"))


@pytest.mark.slow
def test_mpirun_inside_a_batch_script_knows_better_than_slurm(here: Here, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "job.sh").write_text(
        f"#!/bin/bash\n#SBATCH -N2 -n4 -o out\n{MPIRUN} -n 4 {sys.executable} script.py\n"
    )
    done = here.run("sbatch", "--wait", "job.sh", cwd=tmp_path)
    assert done.returncode == 0, (tmp_path / "out").read_text()
    found = said(tmp_path, 4)
    assert [one[:3] for one in found] == [["Open MPI", rank, 4] for rank in range(4)]
    assert len({one[5] for one in found}) == 2
    assert sorted(map(str, {tuple(one[6]) for one in found})) == ["(0, 1)", "(2, 3)"]


@pytest.mark.slow
def test_dlp_train_under_srun(here: Here, tmp_path: Path) -> None:
    words = ("train", "task=zoo/digits", "rule=ssgd", "boxes=2", "run.minibatches=8", "run.dir=run",
             "run.extras=false")  # fmt: skip
    done = here.run("srun", "-n2", *DLP, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 worker(s), 2 box(es)" in done.stdout
    done = here.run("srun", "-n2", *DLP, *words[:2], "rule=sgd", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("dlp: error: ") == 1
    assert "rule=sgd is not a rule; closest: ssgd" in done.stderr
    assert not list(tmp_path.glob(".dlp-*"))


@pytest.mark.slow
def test_one_task_of_srun_starts_its_workers_itself(here: Here, tmp_path: Path) -> None:
    words = ("train", "task=zoo/digits", "workers=2", "run.minibatches=8", "run.dir=run",
             "run.extras=false")  # fmt: skip
    done = here.run("srun", "-n1", "-c2", "--mpi=pmi2", *DLP, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 worker(s), 1 box(es): shm://" in done.stdout
