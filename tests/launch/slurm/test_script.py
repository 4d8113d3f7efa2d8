"""What would be submitted, what is refused before, and what becomes of jobs that end badly."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlplatform import cli
from dlplatform.errors import PlatformError, UsageError
from launch import compose
from launch.slurm import allocation, queue, script, settings, submission

compose.register()


def configured(*words: str) -> dict[str, Any]:
    return compose.settle(
        compose.compose(["task=zoo/digits", "launcher=slurm", "run.dir=run", *words])
    )


def written(*words: str) -> str:
    return script.write([configured(*words)], Path("/shared/a b"))


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:8] == "#SBATCH "]


def test_the_script_asks_for_what_was_asked() -> None:
    words = ("rule=ssgd", "workers=5", "boxes=3", "slurm.nodes=2", "slurm.time=2-12:30")
    more = ("slurm.partition=gpu", "slurm.account=us", "slurm.cpus=4", "slurm.signal_s=300")
    text = written(*words, *more, 'slurm.options="--gres=gpu:1 --constraint=ib"')
    assert options(text) == [
        *('--output="/shared/a b/slurm.log"', "--nodes=2", "--ntasks=5", "--ntasks-per-node=3"),
        *("--cpus-per-task=4", "--job-name=zoo-digits-ssgd", "--partition=gpu", "--account=us"),
        *("--time=2-12:30", "--signal=B:USR1@300", "--requeue", "--open-mode=append"),
        "--gres=gpu:1 --constraint=ib",
    ]
    steps = [shlex.split(line, comments=False)[1:] for line in text.splitlines() if " srun" in line]
    assert [step[0] for step in steps if step] == ["srun"] * 4
    nodes = [word for step in steps for word in step if word.startswith("--nodelist")]
    assert nodes == ["--nodelist=NODE0", "--nodelist=NODE1", "--nodelist=NODE0"]
    assert "folder='/shared/a b'\n" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_a_rule_that_outlives_workers_outlives_nodes() -> None:
    assert "--no-kill" in options(written("rule=easgd", "workers=2"))
    assert "--no-kill" not in options(written("rule=ssgd", "workers=2"))
    mixed = [configured("rule=easgd", "workers=2"), configured("rule=ssgd", "workers=2")]
    assert "--no-kill" not in options(script.write(mixed, Path("/x"), array=True))


def test_boxes_on_nodes_of_their_own() -> None:
    text = written("workers=4", "boxes=2", "slurm.nodes=2", "slurm.boxes_on=own")
    assert {"--nodes=4", "--ntasks-per-node=2"} <= {*options(text)}
    assert not [one for one in options(text) if one.startswith("--ntasks=")]
    assert "--relative=2 " in text and "--nodes=2 --ntasks=4 " in text
    named = written("workers=4", "boxes=3", "slurm.nodes=2", "slurm.boxes_on=[n7,n9]")
    assert "--nodelist=n7,n9" in options(named)
    assert [named.count(f"--nodelist={node} ") for node in ("n7", "n9")] == [2, 1]


def test_one_node_has_its_boxes_in_shared_memory() -> None:
    assert "--bind shm://NAME" in written("workers=2")
    assert "--bind tcp://NODE0:0" in written("workers=2", "cluster.transport=tcp")
    far = written("workers=2", "slurm.nodes=2", "slurm.boxes_on=first", "slurm.address='{node}-ib'")
    assert "--bind tcp://NODE0-ib:0" in far


def test_a_job_that_may_not_come_back() -> None:
    text = written("slurm.restarts=0")
    assert "--no-requeue" in options(text)
    assert "-lt 0 ]" in text


def test_a_sweep_is_an_array_wide_enough_for_each() -> None:
    jobs = [configured("workers=2"), configured("workers=6", "boxes=4", "slurm.nodes=3")]
    text = script.write(jobs, Path("/sweep"), array=True)
    assert {"--array=0-1", "--nodes=3", "--ntasks=6"} <= {*options(text)}
    assert '--output="/sweep/%a/slurm.log"' in options(text)
    assert "folder=/sweep/$SLURM_ARRAY_TASK_ID\n" in text
    jobs.append(configured("slurm.time=60"))
    with pytest.raises(UsageError, match=r"slurm\.time=60 beside  in one sweep"):
        script.write(jobs, Path("/sweep"), array=True)


def test_a_template_of_the_site(tmp_path: Path) -> None:
    mine = tmp_path / "site.sh"
    mine.write_text(
        "#!/bin/bash\n{{options}}\nmodule load x\n{{python}} -m launch.slurm {{folder}}\n"
    )
    text = written(f"slurm.template={mine}")
    assert text.endswith(
        f"module load x\n{shlex.quote(sys.executable)} -m launch.slurm '/shared/a b'\n"
    )
    mine.write_text("{{option}}")
    with pytest.raises(
        UsageError, match=r"has \{\{option\}\}; closest: options - allowed: options,"
    ):
        written(f"slurm.template={mine}")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        *(("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:30", 95400)),
        *(("2-0:0:1", 172801), ("1h", None), ("", None), ("1:2:3:4", None), ("-5", None)),
    ],
)
def test_time_limits_as_slurm_reads_them(limit: str, expected: int | None) -> None:
    assert settings.seconds(limit) == expected


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("slurm.time=2", "slurm.time=2 cannot work - allowed: longer than slurm.signal_s=120"),
        ("slurm.time=soon", "slurm.time=soon cannot work - allowed: minutes, H:M:S"),
        ("slurm.nodes=3", "slurm.nodes=3 cannot work - allowed: 1 to workers=2"),
        ("slurm.start=ssh", "slurm.start=ssh cannot work - allowed: srun, mpirun"),
        ("slurm.boxes_on=[]", "slurm.boxes_on=[] cannot work - allowed: workers, first, own"),
        ("slurm.boxes_on='n 1'", "slurm.boxes_on=n 1 cannot work"),
        ("slurm.srun=\"'\"", "slurm.srun=' cannot work - allowed: options as in a shell"),
        ("slurm.template=none.sh", "slurm.template=none.sh cannot work - allowed: an existing"),
        ("slurm.cpus=0", "slurm.cpus=0 cannot work - allowed: 1 or more - do: slurm.cpus=1"),
        ("slurm.cpus=two", "slurm.cpus=two is not a whole number"),
        ("slurm.partiton=x", "slurm.partiton=x is not a setting; closest: slurm.partition"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(word: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        configured("workers=2", word)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_shared_memory_does_not_reach_other_nodes() -> None:
    with pytest.raises(UsageError, match=r"cluster\.transport=shm over several nodes"):
        configured("workers=2", "slurm.nodes=2", "cluster.transport=shm")


def test_no_slurm_is_exit_3_and_leaves_nothing(tmp_path: Path) -> None:
    for verb in (["submit"], ["train", "launcher=slurm"], ["submit", "-m", "seed=0,1"]):
        line = [sys.executable, "-m", "dlplatform.cli", *verb, "task=zoo/digits"]
        env = {**os.environ, "PATH": str(tmp_path)}
        done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 3
        assert done.stderr.startswith("dlp: error: launcher=slurm finds no sbatch - allowed: ")
        assert "bash scripts/slurm_here.sh" in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


def test_submit_is_for_slurm_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "task=zoo/digits", "launcher=local"]) == 2
    assert "launcher=local in dlp submit - allowed: launcher=slurm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "error", "code", "text"),
    [
        ({"JobState": "CANCELLED"}, "", 75, "job 7 was cancelled"),
        ({"JobState": "TIMEOUT", "RunTime": "01:00:00"}, "", 75, "ran out of time after 01:00:00"),
        ({"JobState": "NODE_FAIL", "NodeList": "n[1-2]"}, "", 4, "lost a node of n[1-2]"),
        ({"JobState": "OUT_OF_MEMORY"}, "", 3, "ran out of memory"),
        ({"JobState": "FAILED", "Reason": "JobLaunchFailure"}, "", 3, "and wrote no "),
        ({"JobState": "FAILED", "ExitCode": "5:0"}, "loss is nan", 5, "loss is nan [job 7, "),
        (
            {"JobState": "FAILED", "ExitCode": "1:0", "Reason": "NonZeroExitCode"},
            "",
            1,
            "look into",
        ),
    ],
)
def test_how_a_job_ended(
    told: dict[str, str], error: str, code: int, text: str, tmp_path: Path
) -> None:
    (tmp_path / script.LOG).touch()
    found: PlatformError = submission.failure("job 7", tmp_path, told, error)
    assert (found.exit_code, text in str(found)) == (code, True), str(found)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("sbatch: error: invalid partition: x\nsbatch: error: Batch job submission failed: "
         "Invalid partition name specified\n", "Invalid partition name specified"),
        ("srun: error: Unable to create step for job 3: Invalid node name\n",
         "Unable to create step for job 3: Invalid node name"),
        ("", "no reason given"),
    ],
)  # fmt: skip
def test_the_reason_of_a_refusal(said: str, reason: str) -> None:
    assert queue.reason(said) == reason


def test_nodes_of_boxes() -> None:
    def nodes(where: object, boxes: int = 3) -> list[str]:
        asked = settings.SlurmConfig(boxes_on=where)
        return allocation.box_nodes(asked, ["a", "b", "c", "d"], boxes)

    assert nodes("workers", 5) == ["a", "b", "c", "d", "a"]
    assert nodes("first") == ["a", "a", "a"]
    assert nodes("own", 2) == ["a", "b"]
    assert nodes(["d", "b"]) == ["d", "b", "d"]
    assert nodes("c", 1) == ["c"]
    with pytest.raises(UsageError, match=r"\[x\]: x is not a node of this job"):
        nodes(["x"])
