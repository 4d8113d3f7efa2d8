"""Two jobs on one machine, or in the same boxes, and boxes that are not what was promised."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from liverun import LiveRun, live, shared_memory, standing_box, until

QUICK = ("workers=2", "run.minibatches=80", "run.eval_every=80", "run.threads=1")


def in_box(address: str, secret: Path) -> tuple[str, str]:
    return f"cluster.boxes=[{address}]", f"cluster.secret_file={secret}"


def weights(run: LiveRun) -> bytes:
    return (run.folder / "checkpoints/latest/weights.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_jobs_on_one_machine(tmp_path: Path) -> None:
    before = shared_memory()
    words = ("rule=ssgd", "boxes=2", *QUICK)
    with live(tmp_path / "one", *words) as one, live(tmp_path / "other", *words) as other:
        assert (one.wait(), other.wait()) == (0, 0), one.err + other.err
        assert weights(one) == weights(other)
    assert shared_memory() <= before


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_jobs_in_the_same_boxes(tmp_path: Path) -> None:
    """Equal jobs give equal weights, and the boxes hold nothing of them afterwards."""
    with standing_box(tmp_path) as (address, secret):
        words = ("rule=ssgd", *QUICK, *in_box(address, secret))
        with live(tmp_path / "one", *words) as one, live(tmp_path / "other", *words) as other:
            assert (one.wait(), other.wait()) == (0, 0), one.err + other.err
            assert weights(one) == weights(other)
        until(lambda: status(address, secret)["segments"] == 0, 10, "an empty box")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_job_leaves_its_neighbour_alone(tmp_path: Path) -> None:
    with standing_box(tmp_path) as (address, secret):
        words = (*QUICK, *in_box(address, secret))
        with live(tmp_path / "a", "rule=easgd", *words) as one:
            with live(tmp_path / "b", "rule=asgd", *words[:1], *words[2:]) as other:
                other.trains()
                for rank in (0, 1):
                    os.kill(other.worker(rank), signal.SIGKILL)
                assert other.wait(30) == 4
                assert "all 2 workers were killed" in other.err
            assert one.wait() == 0, one.err
        until(lambda: status(address, secret)["segments"] == 0, 10, "an empty box")


def status(address: str, secret: Path) -> dict[str, int]:
    from dlplatform.memorybox import wire
    from dlplatform.memorybox.cluster import Cluster

    cluster = Cluster([address], "status", wire.load_secret(str(secret)), 10)
    try:
        return cluster.transports[0].call("status")
    finally:
        cluster.close()


def refused(run: LiveRun, code: int, *words: str) -> None:
    assert run.wait() == code, run.err
    lines = run.err.strip().splitlines()
    assert len(lines) == 1, run.err
    assert all(word in lines[0] for word in words), run.err
    assert not run.left()


@pytest.mark.slow
def test_nobody_answers_at_the_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    secret.chmod(0o600)
    words = in_box(f"tcp://127.0.0.1:{port}", secret)
    with live(tmp_path / "run", "rule=easgd", *QUICK, *words) as run:
        refused(run, 4, "no memory box answers", str(port), "do:")


@pytest.mark.slow
def test_a_wrong_secret(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not it\n")
    other.chmod(0o600)
    with (
        standing_box(tmp_path) as (address, _),
        live(tmp_path / "run", "rule=easgd", *QUICK, *in_box(address, other)) as run,
    ):
        refused(run, 2, "secret", address, "cluster.secret_file=")


@pytest.mark.slow
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts a small disk")
    try:
        words = ("rule=alone", "run.minibatches=60", "run.eval_every=10")
        with live(disk / "run", *words, words_in=tmp_path) as run:
            refused(run, 3, "No space left", "do: free space")
        state = json.loads((disk / "run/checkpoints/latest/state.json").read_text())
        assert state["position"] >= 10
    finally:
        subprocess.run(["umount", str(disk)], check=True)
