"""Sweeps in a real Slurm: as one array, and through Hydra's own launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurmhere import POINTS, Followed, Here

pytestmark = pytest.mark.timeout(700)

SHORT = ("run.minibatches=12", "run.eval_every=6", "hydra.sweep.dir=sweep")


@pytest.mark.slow
def test_a_sweep_is_one_array_and_a_table(here: Here, tmp_path: Path) -> None:
    words = (*POINTS, "rule=ssgd,alone", "workers=2", "seed=0,1", "slurm.boxes_on=own", *SHORT)
    job = here.follow("-m", *words, "slurm.at_once=2", cwd=tmp_path)
    assert job.wait() == 0, job.out
    assert "#SBATCH --array=0-3%2" in (tmp_path / "sweep" / "slurm.sh").read_text()
    for number in range(4):
        assert f"dlp: job {job.number}_{number} is COMPLETED" in job.out
        assert (tmp_path / "sweep" / str(number) / "slurm.log").exists()
    for word in ("rule=ssgd seed=1", "rule=alone", "mean", "spread", "sweep.csv", "sweep.png"):
        assert word in job.out
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 10000


@pytest.mark.slow
def test_a_sweep_that_is_submitted_is_summed_up_later(here: Here, tmp_path: Path) -> None:
    bad = ("rule=ssgd", "workers=2", "seed=0,1", "cluster.boxes=[tcp://127.0.0.1:1]")
    (tmp_path / "secret").write_text("x" * 64)
    (tmp_path / "secret").chmod(0o600)
    more = (f"cluster.secret_file={tmp_path / 'secret'}", "cluster.timeout_s=1", *SHORT)
    done = here.dlp("submit", "-m", *POINTS, *bad, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"table    dlp sweep {tmp_path / 'sweep'}" in done.stdout
    here.ended(done.stdout.partition("dlp: job ")[2].split()[0])
    done = here.dlp("sweep", "sweep", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("no memory box answers at tcp://127.0.0.1:1") == 2


@pytest.mark.slow
def test_six_jobs_through_submitit_end_in_a_table(long: dict[str, Followed]) -> None:
    job = long["six"]
    assert job.wait() == 0, job.out
    folder = job._out.parent / "sweep"
    assert len(list(folder.glob("[0-5]/result.json"))) == 6
    assert len(list(folder.glob(".submitit/*/*_submission.sh"))) <= 1
    table = job.out[job.out.index("sweep sweep") :]
    for row in ("task.augment=False seed=2", "task.augment=True seed=0"):
        assert row in table
    assert table.count("│ 3 ") >= 2  # jobs of a group, and the third job
    assert (folder / "sweep.csv").read_text().count("\n") == 7
    assert (folder / "sweep.png").exists()
