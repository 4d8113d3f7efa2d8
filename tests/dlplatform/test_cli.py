"""The command ``dlp`` as a user types it, in processes of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dlplatform import cli
from dlplatform.errors import EnvironmentMissing, PeerLost
from launch import help, submit

TASK = "task=zoo/digits"


def dlp(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dlplatform.cli", *words],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "task=zoo/digit"], "closest: zoo/digits. All tasks: dlp tasks"),
        (["train", TASK, "rule=esgd"], "rule=esgd is not a rule; closest: easgd."),
        (["train", TASK, "workers=0"], "workers=0 cannot work - allowed: 1 to 4096"),
        (["train", TASK, "seed=x"], "seed=x is not a whole number"),
        (["train", TASK, "rule=ssgd,easgd"], "rule has several values - allowed: one"),
        (["train", "-m", TASK, "rule=ssgd,esgd"], "rule=esgd is not a rule; closest: easgd."),
        (["train", "-m", TASK, "run.dir=x", "seed=0,1"], "run.dir=x in a sweep"),
        (["train", TASK, "--cfg", "jbo"], "invalid choice: 'jbo'"),
        (["train", TASK, "sed=1", "--cfg", "job"], "sed=1 is not a setting; closest: seed."),
        (["train", TASK, "--turbo"], "unrecognized arguments: --turbo"),
        (["train"], "task is missing - allowed: face/detection, "),
        (["trian"], "dlp trian is not a command; closest: train."),
        (["eval", "run=nowhere"], "run=nowhere is not a folder"),
        (["eval", "run=.", "split=tset"], "split=tset cannot work - allowed: train, val, test"),
        (["eval", "rum=."], "rum=. is not a setting; closest: run."),
        (["predict", "run=."], "dlp predict without a file"),
        (["predict", "run=.", "no.png"], "no.png is not a file"),
    ],
)
def test_a_refused_command_is_one_line_and_leaves_nothing(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = dlp(tmp_path, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("dlp: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["eval", "-h"], ["tasks"]])
def test_help_answers_within_a_second(tmp_path: Path, words: list[str]) -> None:
    seconds = []
    for _ in range(3):  # processor time, best of three: a busy machine must not fail it
        begin = processor_seconds()
        done = dlp(tmp_path, *words)
        seconds.append(processor_seconds() - begin)
    assert done.returncode == 0
    assert done.stderr == ""
    assert min(seconds) < 1.0


def test_help_loads_neither_torch_nor_hydra() -> None:
    script = (
        "import sys; from dlplatform import cli; cli.main(['train', '--help']);"
        "print([m for m in ('torch', 'hydra', 'mpi4py') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_help_lists_verbs_rules_tasks_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    help.overview()
    help.verb_help("train", [TASK, "rule=easgd"])
    text = capsys.readouterr().out
    for word in (*cli.VERBS, "ssgd", "hybrid", "zoo/digits", "task.blocks=3", "rule.rate=null"):
        assert word in text
    for word in ("workers=1", "run.clip=0.0", "--dry-run", "exit codes"):
        assert word in text


def test_cfg_job_prints_the_configuration_and_leaves_nothing(tmp_path: Path) -> None:
    done = dlp(tmp_path, "train", TASK, "rule=easgd", "seed=3", "--cfg", "job", "--resolve")
    assert (done.returncode, done.stderr) == (0, "")
    assert "name: zoo/digits\n  seed: 3" in done.stdout
    assert "name: easgd" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_every_process_and_leaves_nothing(tmp_path: Path) -> None:
    done = dlp(tmp_path, "train", TASK, "workers=3", "boxes=2", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [("memorybox" in line, "worker" in line) for line in lines] == [
        *[(True, False)] * 2,
        *[(False, True)] * 3,
    ]
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_sweep_shows_each_job(tmp_path: Path) -> None:
    done = dlp(
        tmp_path, "train", "-m", TASK, "workers=2", "rule=ssgd,easgd", "seed=0,1", "--dry-run"
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("#")] == [
        f"# {TASK} workers=2 rule={rule} seed={seed}"
        for rule in ("ssgd", "easgd")
        for seed in (0, 1)
    ]


def test_a_configuration_folder_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "conf" / "run").mkdir(parents=True)
    (tmp_path / "conf" / "run" / "mine.yaml").write_text("minibatches: 77\n")
    done = dlp(tmp_path, "train", TASK, "run=mine", "-cd", "conf", "--cfg", "job")
    assert "minibatches: 77" in done.stdout


def test_missing_mpirun_is_exit_3_and_leaves_no_run_folder(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    script = (
        "import sys; from dlplatform import cli; sys.executable = '/nowhere/python';"
        f"sys.exit(cli.main(['train', '{TASK}', 'workers=2', 'launcher=mpirun']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(bare)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("dlp: error: launcher=mpirun finds no mpirun")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_workers_that_contradict_the_launcher_are_refused(tmp_path: Path) -> None:
    request = submit.parse(["train", TASK, "workers=3"][1:])
    with pytest.raises(submit.UsageError, match="workers=3 under a launcher that started 2"):
        submit._submit(request, lambda config: 0.0, 2)


def test_guard_maps_ends_to_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(error: BaseException) -> int:
        def run() -> None:
            raise error

        return cli.guard(run)

    assert cli.guard(lambda: None) == 0
    assert cli.guard(lambda: 7) == 7
    assert end(PeerLost("box 2\nis gone")) == 4
    assert capsys.readouterr().err == "dlp: error: box 2 is gone\n"
    assert end(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    assert end(RuntimeError("oops")) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("DLP_REPORT", "line")
    assert end(EnvironmentMissing("no shm")) == 0
    assert capsys.readouterr().err == "dlp: rank 0 exit 3: no shm\n"


def test_tidying_keeps_what_was_trained(tmp_path: Path) -> None:
    refused, trained = tmp_path / "out/a/1", tmp_path / "out/b/1"
    for folder in (refused, trained):
        (folder / ".hydra").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (trained / "metrics.jsonl").write_text("{}")
    submit._tidy(refused)
    submit._tidy(trained)
    assert not (tmp_path / "out/a").exists()
    assert (trained / "config.json").exists()


SHORT = ("run.minibatches=8", "run.eval_every=4", "task.augment=false", "run.extras=false")


def test_train_eval_predict_in_one_process(tmp_path: Path) -> None:
    done = dlp(tmp_path, "train", TASK, "rule=alone", *SHORT, "run.dir=run", "run.progress=plain")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["score"] <= 1
    done = dlp(tmp_path, "eval", "run=run", "which=latest", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scores"]["accuracy"] == pytest.approx(result["score"])


@pytest.mark.slow
def test_a_sweep_ends_with_a_table(tmp_path: Path) -> None:
    done = dlp(tmp_path, "train", "-m", TASK, "rule=alone", "seed=0,1", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "dlp: job 2 of 2: " in done.stdout
    table = done.stdout[done.stdout.index("sweep multirun") :]
    assert "seed=0" in table
    assert "seed=1" in table
    assert len(list(tmp_path.glob("multirun/*/*/*/result.json"))) == 2
