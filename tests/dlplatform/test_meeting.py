"""Ranks that no MPI connects: they meet through torchrun's store, or a folder that all share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from liverun import DLP, QUICK

from dlplatform import meeting
from dlplatform.errors import PeerLost, UsageError
from dlplatform.world import World

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PLAIN = {
    name: value for name, value in os.environ.items() if not name.startswith(("DLP_", "SLURM"))
}
ENV = {**PLAIN, "OMP_NUM_THREADS": "1"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_LAUNCHER_PORT": "4242"}
SCRIPT = """
import json, os, torch, dlplatform
job = dlplatform.init(boxes=2)
model = torch.nn.Linear(4, 1)
optimizer = dlplatform.distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, rule="ssgd")
for step in range(3):
    optimizer.zero_grad()
    model(torch.full((2, 4), float(job.rank))).sum().backward()
    optimizer.step()
told = [job.world.launcher, job.rank, job.size, model.weight.sum().item()]
json.dump(told, open(f"said-{job.rank}", "w"))
"""


def said(folder: Path, size: int) -> list[list[Any]]:
    return [json.loads((folder / f"said-{rank}").read_text()) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_torchrun_trains_digits(tmp_path: Path) -> None:
    words = (
        "task=zoo/digits",
        "rule=ssgd",
        "boxes=2",
        "run.minibatches=500",
        "run.dir=run",
        "run.extras=false",
        *QUICK,
    )
    line = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "-m", "dlplatform.cli", "train"]
    done = subprocess.run(
        [*line, *words], env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "2 worker(s), 2 box(es): shm://" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["workers"] == 2
    assert result["score"] >= 0.97
    assert not list(tmp_path.glob(".dlp-*"))


@pytest.mark.slow
def test_torchrun_starts_a_script_of_two_lines(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    line = [*TORCHRUN, "--standalone", "--nproc-per-node=3", "script.py"]
    done = subprocess.run(line, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = said(tmp_path, 3)
    assert [one[:3] for one in found] == [["torchrun", rank, 3] for rank in range(3)]
    assert len({one[3] for one in found}) == 1  # the same weights


@pytest.mark.slow
def test_variables_set_by_hand_are_enough(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with meeting.socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "script.py"], env={**ENV, **own, "RANK": rank}, cwd=tmp_path
        )
        for rank in "01"
    ]
    assert [rank.wait(150) for rank in ranks] == [0, 0]
    assert len({one[3] for one in said(tmp_path, 2)}) == 1


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_one_line_of_ours(tmp_path: Path) -> None:
    line = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "-m", "dlplatform.cli", "train"]
    done = subprocess.run(
        [*line, "task=zoo/digit"],
        env=ENV,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    ours = [one for one in done.stderr.splitlines() if one.startswith("dlp: error:")]
    assert len(ours) == 1
    assert "closest: zoo/digits" in ours[0]


def test_ranks_without_a_place_to_meet_are_told(tmp_path: Path) -> None:
    two = {"RANK": "0", "WORLD_SIZE": "2"}
    line = [*DLP, "train", "task=zoo/digits", f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(line, env={**ENV, **two}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "without boxes or MASTER_ADDR and MASTER_PORT - allowed: mpirun, srun" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put this process into a step of Slurm; return where its ranks meet."""
    monkeypatch.chdir(tmp_path)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting.atexit, "register", lambda *_: None)
    monkeypatch.setattr(meeting, "PATIENCE_S", 0.3)
    monkeypatch.setattr(meeting, "GOODBYE_S", 0.3)
    return tmp_path / ".dlp-meeting-7-0-4242"


def rank(number: int) -> World:
    return World(number, 3, number, 3, "Slurm")


def test_the_message_is_for_its_owner_only(step: Path) -> None:
    value = {"secret": "ä", "addresses": ["tcp://a:1"]}
    assert meeting.meet(rank(0), value) == value
    assert step.stat().st_mode & 0o777 == 0o700
    assert [meeting.meet(rank(n), None) for n in (1, 2)] == [value, value]
    meeting._leave(step, 2)
    assert not step.exists()


def test_what_an_earlier_step_left_is_not_heard(step: Path) -> None:
    step.mkdir(mode=0o700)
    (step / "message.json").write_text('"old"')
    (step / "read-1").touch()
    meeting.meet(rank(0), "new")
    assert meeting.meet(rank(1), None) == "new"


def test_a_folder_that_is_not_shared_is_told(step: Path) -> None:
    with pytest.raises(
        PeerLost, match=r"rank 2 on \S+ heard nothing of rank 0 in \S+ within 0.3 s"
    ):
        meeting.meet(rank(2), None)


def test_a_message_that_others_can_read_is_refused(step: Path) -> None:
    meeting.meet(rank(0), "x")
    step.chmod(0o755)
    with pytest.raises(UsageError, match="belongs to somebody else, or others can read it"):
        meeting.meet(rank(1), None)
    if os.geteuid() == 0:
        step.chmod(0o700)
        os.chown(step, 12345, -1)
        with pytest.raises(UsageError, match="belongs to somebody else"):
            meeting.meet(rank(1), None)


def test_boxes_are_near_on_one_node_and_far_on_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLP_ADDRESS", "10.1.2.3")
    near, far = World(0, 4, 0, 4), World(0, 4, 0, 2)
    assert meeting.way(near, "auto") == ("shm", "127.0.0.1")
    assert meeting.way(near, "tcp") == ("tcp", "127.0.0.1")
    assert meeting.way(far, "auto") == ("tcp", "10.1.2.3")
    assert meeting.way(far, "tcp") == ("tcp", "10.1.2.3")


def test_a_name_that_is_only_this_hosts_own_is_not_given_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"n1": "127.0.1.1", "n2": "10.0.0.2"}
    monkeypatch.setattr(meeting.socket, "gethostbyname", lambda name: names.get(name, name))
    assert meeting.outward("n2") == "10.0.0.2"
    assert meeting.outward("127.0.0.1") == "127.0.0.1"  # who says so means it
    assert meeting.outward("n1") != "127.0.1.1" or not os.popen("ip route").read()
