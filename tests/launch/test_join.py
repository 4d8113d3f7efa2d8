"""``dlp join`` beside real runs: newcomers speed up, leave, die, and are refused in one line."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from joined import Join, begun, done, install, points, refused, shares
from liverun import processes, standing_box, until
from seldom import LONG

from dlplatform import cli
from dlplatform.errors import UsageError
from dlplatform.job import DOOR
from launch import join

TOTAL = 400


@pytest.fixture(autouse=True)
def _tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


# -- refusals: nothing is started ------------------------------------------------------------


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (["nowhere"], "nowhere is neither a run folder nor an address"),
        (["nowhere", "--workers", "0"], "--workers 0 cannot work"),
        (["tcp://nowhere"], "'tcp://nowhere' is not an address of a box"),
        ([], "dlp join: the following arguments are required"),
    ):
        assert cli.main(["join", *words]) == 2
        assert text in capsys.readouterr().err


def test_help_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["join", "--help"]) == 0
    page = capsys.readouterr().out
    options = re.findall(r"--[\w-]+", " ".join(a.option_strings[0] for a in
                         join.parser()._actions if a.option_strings))  # fmt: skip
    assert options and all(option in page for option in options)
    assert "dlp join FOLDER" in page


def test_no_box_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["join", "tcp://127.0.0.1:9"]) == 4
    assert "no memory box answers" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_jobs_that_cannot_be_joined(tmp_path: Path) -> None:
    """Ended; synchronous; with its box inside its process."""
    with points(tmp_path / "over", 5, "rule=easgd") as over:
        assert over.wait() == 0, over.err
        assert not (over.folder / DOOR).exists()
        refused(4, "does not run", "resume=auto", join=Join(over.folder))
    with points(tmp_path / "sync", 2000, "rule=ssgd", "workers=2") as sync:
        sync.trains()
        refused(2, "rule=ssgd", "asgd", "easgd", join=Join(sync.folder))
    with points(tmp_path / "inside", 2000, "rule=easgd", "cluster=here") as inside:
        inside.trains()
        refused(2, "inside its only process", "cluster.transport=shm", join=Join(inside.folder))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_standing_boxes_their_secret_and_their_jobs(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("x" * 64)
    wrong.chmod(0o600)
    with standing_box(tmp_path) as (address, secret):
        where = (f"cluster.boxes=[{address}]", f"cluster.secret_file={secret}")
        refused(4, "no job runs", join=Join(address, "--secret-file", secret))
        with points(tmp_path / "run", 300, "rule=asgd", "cluster.job=mine", *where) as run:
            run.trains()
            assert secret.read_text().strip() not in (run.folder / DOOR).read_text()
            refused(2, "secret", join=Join(address, "--secret-file", wrong))
            refused(2, "secret", join=Join(run.folder, "--secret-file", wrong))
            refused(2, "--job other", "mine", join=Join(
                address, "--secret-file", secret, "--job", "other"))  # fmt: skip
            newcomer = Join(address, "--secret-file", secret, "--dir", tmp_path / "logs")
            assert run.wait() == 0, run.err
            code, out, err = newcomer.end(30)
        assert (code, err) == (0, ""), out
        assert (tmp_path / "logs/rank-1.log").exists()
        assert done(run) == Counter(range(300))
        assert len(shares(run)) == 2


# -- joining and leaving ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_newcomers_speed_up_a_run_and_do_each_number_once(tmp_path: Path) -> None:
    """Two at once from two commands, while the job may still be starting."""
    with points(tmp_path / "run", TOTAL, "rule=easgd", "workers=1", slow_s=0.1) as run:
        until((run.folder / "config.json").exists)
        crews = [Join(run.folder, "--workers", 2), Join(run.folder)]
        begun(run, 4)
        assert (run.folder / DOOR).stat().st_mode & 0o777 == 0o600
        assert run.wait() == 0, run.err
        ended = [crew.end(30) for crew in crews]
    assert [(code, err) for code, _, err in ended] == [(0, "")] * 2, ended
    assert sum(out.count("job is done at minibatch") for _, out, _ in ended) == 3
    assert done(run) == Counter(range(TOTAL))
    result = run.result()
    assert result["workers"] == 1
    assert result["joined_workers"] == [1, 2, 3]
    assert result["left_workers"] == result["lost_workers"] == []
    assert result["seconds"] < 0.75 * 0.1 * TOTAL
    assert "worker 1 joined" in run.out and "workers that joined: [1, 2, 3]" in run.out
    assert not (run.folder / DOOR).exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=LONG)])
def test_a_newcomer_leaves_and_another_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    with points(tmp_path / "run", TOTAL, "rule=asgd", "workers=1", "cluster=tcp") as run:
        run.trains()
        polite, rough = Join(run.folder), Join(run.folder)
        begun(run, 3)
        polite.send_signal(how)
        code, out, err = polite.end(20)
        assert (code, err) == (0, "")
        assert re.search(r"^dlp: worker \d left at minibatch \d+ of 400$", out, re.M), out
        victims = [pid for pid in processes("DLP_LATE=1") if b"dlplatform.worker" in
                   Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
        victims = [pid for pid in victims if parent(pid) == rough.pid]
        os.kill(victims[0], signal.SIGKILL)
        code, _, err = rough.end(20)
        assert code == 4 and "was killed (SIGKILL)" in err and "go on" in err
        assert run.wait() == 0, run.err
    assert set(done(run)) == set(range(TOTAL))
    assert sum(done(run).values()) <= TOTAL + 1
    result = run.result()
    assert result["joined_workers"] == [1, 2]
    assert sorted(result["left_workers"] + result["lost_workers"]) == [1, 2]
    assert len(result["lost_workers"]) == 1


def parent(pid: int) -> int:
    """Return the process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_to_the_job_stops_those_who_joined_too(tmp_path: Path) -> None:
    with points(tmp_path / "run", 5000, "rule=easgd", "workers=1") as run:
        run.trains()
        crew = Join(run.folder, "--workers", 2)
        begun(run, 3)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait(60) == 75, run.err
        code, _, err = crew.end(30)
    assert code == 75, err
    assert len(err.splitlines()) == 1 and "stopped on request" in err
    trained = done(run)
    assert trained == Counter(range(len(trained)))
    assert not (run.folder / DOOR).exists()
    assert run.left() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_newcomer_finishes_for_a_first_worker_that_was_killed(tmp_path: Path) -> None:
    """The launcher of the job goes on as long as one of its own workers lives."""
    with points(tmp_path / "run", TOTAL, "rule=easgd", "workers=2") as run:
        run.trains()
        crew = Join(run.folder)
        begun(run, 3)
        os.kill(run.worker(0), signal.SIGKILL)
        assert run.wait() == 0, run.err
        code, _, err = crew.end(30)
    assert (code, err) == (0, "")
    assert set(done(run)) == set(range(TOTAL))
    assert run.result()["lost_workers"] == [0]
    assert run.result()["joined_workers"] == [2]


def test_stages_cannot_be_joined() -> None:
    with pytest.raises(UsageError, match="stages=2"):
        join._check({"rule": {"name": "easgd"}, "stages": 2})
