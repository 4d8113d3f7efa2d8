"""Jobs in a real Slurm: to the end, out of time, cancelled, on nodes that fail, refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from liverun import QUICK, until
from runs import equal, state, weights
from seldom import LONG
from slurmhere import LIMIT, POINTS, Followed, Here, gone, lines
from tinytask import recorded

pytestmark = pytest.mark.timeout(700)

SHORT = ("run.minibatches=12", "run.eval_every=12", "run.dir=run")
SLOW = ("task.slow_s=0.05", "run.minibatches=4000", "run.eval_every=40", "run.dir=run")


def result(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text())
    return loaded


@pytest.mark.slow
def test_one_command_trains_digits_on_two_nodes(here: Here, tmp_path: Path) -> None:
    words = (
        "task=zoo/digits", "rule=hybrid", "workers=4", "boxes=2", "slurm.nodes=2",
        "slurm.time=00:10:00", "slurm.partition=main", "run.minibatches=600", "run.dir=run",
        "run.threads=1", *QUICK,
    )  # fmt: skip
    script = here.dlp("submit", *words, "--dry-run", cwd=tmp_path).stdout
    assert not (tmp_path / "run").exists()
    done = here.dlp("submit", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder, number = tmp_path / "run", done.stdout.partition("dlp: job ")[2].split()[0]
    assert (folder / "slurm.sh").read_text() == script
    secret = folder / "boxes.secret"
    until(secret.exists, what="the secret")
    assert secret.stat().st_mode & 0o777 == 0o600
    text = secret.read_text().strip()
    until(lambda: here.processes(f"{folder}/config.json"), what="the workers")
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if text in _read(p)]
    ended = here.ended(number)
    assert ended["JobState"] == "COMPLETED", (folder / "slurm.log").read_text()
    assert ended["NumNodes"] == "2"
    assert result(tmp_path)["score"] >= 0.97
    assert result(tmp_path)["workers"] == 4
    assert "4 worker(s), 2 box(es): tcp://" in (folder / "slurm.log").read_text()
    assert {p.name for p in folder.glob("rank-*.log")} == {f"rank-{n}.log" for n in (1, 2, 3)}
    assert not secret.exists()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_job_out_of_time_saves_and_comes_back(here: Here, long: dict[str, Followed]) -> None:
    """The whole is what it would have been at one go, to the last bit."""
    job = long["limit"]
    folder = Path(job._out.parent)
    assert here.ended(job.number)["JobState"] == "COMPLETED", job.out
    assert job.wait() == 0, job.out
    assert "stopped on request at minibatch" in job.out
    assert "back to the queue, exit code 75, restart 1 of 10" in job.out
    assert int(here.state(job.number)["Restarts"]) >= 1
    banners = [line for line in job.out.splitlines() if " parameters, 1000 minibatches" in line]
    assert "1000 minibatches from " in banners[-1]
    assert state(folder / "run")["position"] == 1000
    once = [word for word in LIMIT if not word.startswith(("slurm.", "run.dir", "launcher"))]
    done = here.dlp("train", *once, "run.dir=once", "run.threads=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert equal(weights(folder / "run"), weights(folder / "once"))


@pytest.mark.slow
def test_a_cancelled_job_has_saved_and_leaves_nothing(here: Here, tmp_path: Path) -> None:
    words = (*POINTS, "rule=easgd", "workers=3", "boxes=2", "slurm.nodes=2", *SLOW)
    job = here.follow(*words, cwd=tmp_path).says("/4000")
    left = here.processes(str(tmp_path))
    assert len(left) >= 3
    assert here.run("scancel", job.number).returncode == 0
    assert job.wait() == 75
    assert "was cancelled - " in job.out and job.out.count("dlp: error: ") == 1
    assert 0 < state(tmp_path / "run")["position"] < 4000
    assert gone(left)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=LONG)], ids=["ctrl-c", "sigterm"]
)
def test_whoever_follows_a_job_can_end_it(here: Here, tmp_path: Path, how: signal.Signals) -> None:
    job = here.follow(*POINTS, "rule=ssgd", "workers=2", *SLOW, cwd=tmp_path).says("/4000")
    os.kill(job.process.pid, how)
    assert job.wait() == (130 if how is signal.SIGINT else 75)
    assert here.ended(job.number)["JobState"] in ("CANCELLED", "FAILED")
    assert here.state(job.number)["Restarts"] == "0"
    if how is signal.SIGTERM:
        assert "stopped on request at minibatch" in job.out
        assert state(tmp_path / "run")["position"] > 0


@pytest.mark.slow
def test_a_job_whose_node_fails_goes_on_elsewhere(here: Here, tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.mkdir()
    words = (
        *POINTS, "rule=ssgd", "workers=2", "boxes=2", "slurm.nodes=2", f"task.record={record}",
        "task.slow_s=0.05", "run.minibatches=240", "run.eval_every=40", "run.dir=run",
    )  # fmt: skip
    job = here.follow(*words, cwd=tmp_path)
    until((tmp_path / "run/checkpoints/latest/state.json").exists, what="a checkpoint")
    second = here.run("scontrol", "show", "hostnames", here.state(job.number)["NodeList"])
    node = second.stdout.split()[1]
    here.kill_node(node)
    try:
        assert here.ended(job.number)["JobState"] == "COMPLETED", job.out
    finally:
        here.node(node)
    assert job.wait() == 0, job.out
    assert "worker 1 died and this rule needs all 2" in job.out or "memory box" in job.out
    assert "back to the queue, exit code 4, restart 1 of 10" in job.out
    assert set(recorded(record)) == set(range(240))


@pytest.mark.slow
def test_a_lost_worker_ends_a_job_that_may_not_come_back(here: Here, tmp_path: Path) -> None:
    words = (*POINTS, "rule=ssgd", "workers=2", "slurm.nodes=2", "slurm.restarts=0", *SLOW)
    job = here.follow(*words, "slurm.boxes_on=first", cwd=tmp_path).says("/4000")
    nodes = here.run("scontrol", "show", "hostnames", here.state(job.number)["NodeList"])
    here.kill_steps(nodes.stdout.split()[1])
    assert job.wait() == 4, job.out
    assert job.out.count("dlp: error: ") == 1
    assert "dlp: error: worker 1 died and this rule needs all 2" in job.out
    assert here.ended(job.number)["ExitCode"] == "4:0"


@pytest.mark.slow
def test_mpirun_starts_the_workers_and_boxes_are_where_asked(here: Here, tmp_path: Path) -> None:
    words = (*POINTS, "rule=easgd", "workers=3", "boxes=3", "slurm.nodes=3", *SHORT)
    more = ("slurm.start=mpirun", "slurm.boxes_on=[n3,n5]", 'slurm.setup="echo set up for site"')
    job = here.follow(*words, *more, cwd=tmp_path)
    job.says("3 worker(s), 3 box(es): tcp://")
    assert job.wait() == 0, job.out
    assert "set up for site" in job.out
    script = (tmp_path / "run" / "slurm.sh").read_text()
    steps = lines(tmp_path / "run" / "slurm.sh", "#   srun")
    assert ["n3" in step for step in steps] == [True, False, True]
    assert "#SBATCH --nodelist=n3,n5" in script
    assert result(tmp_path)["workers"] == 3


@pytest.mark.slow
def test_a_run_folder_that_a_node_lacks_is_one_line(here: Here, tmp_path: Path) -> None:
    private = here.folder / "private"
    private.mkdir()
    pid = int((here.folder / "slurm" / "slurmd.n8.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    mount = here.folder / "mount.sh"
    mount.write_text(f'mount -t tmpfs none {private} && exec "$@"\n')
    here.node("n8", f"unshare --mount --propagation private sh {mount}")
    words = (*POINTS, "rule=ssgd", "workers=2", f"run.dir={private}/run", "run.minibatches=12")
    done = here.dlp(
        "train", *words, "slurm.nodes=2", 'slurm.options="--nodelist=n[7-8]"', cwd=tmp_path
    )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"run.dir={private}/run is not on n8 - allowed: a folder that all nodes" in done.stderr
    done = here.dlp("train", *words, 'slurm.options="--nodelist=n8"', cwd=tmp_path)
    assert done.returncode == 3
    assert "and wrote no " in done.stderr


def test_what_slurm_refuses_is_one_line(here: Here, tmp_path: Path) -> None:
    words = ("submit", "task=zoo/digits", "run.dir=run")
    for more, text in (
        ("slurm.partition=man", "slurm.partition=man: Invalid partition name specified; closest: "
         "main - allowed: main - do: slurm.partition=main"),
        ('slurm.options="--nodelist=n77"', "sbatch refuses the job: Invalid node name specified"),
    ):  # fmt: skip
        done = here.dlp(*words, more, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"dlp: error: {text}"), done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
