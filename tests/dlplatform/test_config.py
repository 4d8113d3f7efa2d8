"""Composition and validation of a job, without starting anything."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dlplatform import config
from dlplatform.errors import UsageError
from launch import compose

TASK = "task=zoo/digits"


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    compose.register()


def settle(*words: str) -> dict[str, Any]:
    sweep = compose.parse(words)
    return compose.settle(compose.compose(sweep.samples()[0]))


def test_a_whole_job_is_a_plain_dictionary() -> None:
    job = settle(TASK, "rule=easgd", "workers=4", "boxes=2", "seed=3", "run.minibatches=8")
    assert job["task"]["name"] == "zoo/digits"
    assert job["rule"]["name"] == "easgd"
    assert (job["workers"], job["boxes"], job["run"]["minibatches"]) == (4, 2, 8)
    assert "hydra" not in job


def test_the_seed_of_the_job_is_the_seed_of_the_task_unless_given() -> None:
    assert settle(TASK, "seed=3")["task"]["seed"] == 3
    assert settle(TASK, "seed=3", "task.seed=5")["task"]["seed"] == 5


def test_every_shipped_preset_composes() -> None:
    root = Path(config.__file__).parents[1] / "configs"
    for group in ("cluster", "run", "debug", "experiment", "sweep"):
        files = sorted((root / group).rglob("*.yaml"))
        assert files
        for path in files:
            name = path.relative_to(root / group).with_suffix("").as_posix()
            words = [f"{group}={name}"] + ([] if group == "experiment" else [TASK])
            needed = re.findall(r"dlp.needed:([\w.]+)", path.read_text())
            if needed:
                with pytest.raises(UsageError, match=r"task\.\w+ is missing - allowed: [A-Z]+,"):
                    settle(*words)
            settle(*words, *[f"{key}=x" for key in needed])


def test_an_experiment_chooses_task_rule_and_sizes() -> None:
    job = settle("experiment=zoo/digits", "rule=ssgd")
    assert (job["task"]["name"], job["rule"]["name"]) == ("zoo/digits", "ssgd")
    assert (job["workers"], job["boxes"]) == (4, 2)


def test_the_last_of_two_equal_settings_wins() -> None:
    job = settle(TASK, "rule=hybrid", "workers=4", "rule=ssgd", "workers=2")
    assert (job["rule"]["name"], job["workers"]) == ("ssgd", 2)


def test_running_boxes_set_the_number_of_boxes() -> None:
    job = settle(TASK, "cluster.boxes=[tcp://h:1,'tcp://[::1]:2',shm://a]")
    assert job["boxes"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=zoo/digit"], "task=zoo/digit is not a task; closest: zoo/digits."),
        (
            [TASK, "rule=esgd"],
            "rule=esgd is not a rule; closest: easgd. Allowed: adiloco, alone, asgd,",
        ),
        ([TASK, "sed=1"], "sed=1 is not a setting; closest: seed."),
        ([TASK, "precision=bf16"], "precision=bf16 is not a setting; closest: run.precision."),
        ([TASK, "task.blcks=2"], "task.blcks=2 is not a setting; closest: task.blocks."),
        ([TASK, "rule=easgd", "rule.rte=2"], "rule.rte=2 is not a setting; closest: rule.rate."),
        ([TASK, "seed=x"], "seed=x is not a whole number - allowed: 0 to 4294967295"),
        ([TASK, "seed=-1"], "seed=-1 cannot work - allowed: 0 to 4294967295"),
        ([TASK, "run.clip=x"], "run.clip=x is not a number - allowed: 0 or more"),
        ([TASK, "run.compile=maybe"], "run.compile=maybe is not true or false"),
        ([TASK, "workers=0"], "workers=0 cannot work - allowed: 1 to 4096"),
        ([TASK, "boxes=0"], "boxes=0 cannot work - allowed: 1 to 1024"),
        ([TASK, "run.minibatches=0"], "run.minibatches=0 cannot work - allowed: 1 or more"),
        ([TASK, "run.precision=fp8"], "run.precision=fp8 cannot work - allowed: fp32"),
        (
            [TASK, "run.ahead=2"],
            "run.ahead=2 cannot work - allowed: auto, 0, 1 - do: run.ahead=auto",
        ),
        ([TASK, "run.ema=1"], "run.ema=1.0 cannot work - allowed: 0 up to, not including, 1"),
        ([TASK, "run.clip=nan"], "run.clip=nan cannot work - allowed: 0 or more"),
        ([TASK, "run.progress=loud"], "run.progress=loud cannot work - allowed: auto, live,"),
        ([TASK, "cluster.transport=rdma"], "cluster.transport=rdma cannot work - allowed: auto,"),
        ([TASK, "cluster.memory=/nowhere"], "cluster.memory=/nowhere cannot work - allowed: a"),
        ([TASK, "cluster.timeout_s=0"], "cluster.timeout_s=0.0 cannot work - allowed: above 0"),
        ([TASK, "cluster.secret_file=/no"], "cluster.secret_file=/no cannot work - allowed: an"),
        ([TASK, "cluster.boxes=tcp://h:1"], "cluster.boxes=tcp://h:1 is not a list - allowed: ["),
        ([TASK, "cluster.boxes=[h]"], "cluster.boxes=h is not an address - allowed: tcp://HOST"),
        ([TASK, "cluster.transport=inproc", "workers=2"], "cluster.transport=inproc serves one"),
        ([TASK, "launcher=mpirnu"], "launcher=mpirnu is not a launcher; closest: mpirun."),
        ([TASK, "resume=/nowhere"], "resume=/nowhere is not a run folder"),
        ([TASK, "run=quik"], "run=quik is not a configuration; closest: quick."),
        ([TASK, "experiment=zoo/digit"], "experiment=zoo/digit is not a configuration; closest:"),
        ([TASK, "~seed"], "configuration cannot be composed: Interpolation key 'seed'"),
        ([TASK, "~workers"], "workers is missing"),
        ([TASK, "~run.clip"], "~run.clip cannot work - allowed: every setting has a value"),
        ([TASK, "+seed=1"], "+seed exists already"),
        ([TASK, "seed"], "'seed' is not a setting - allowed: key=value"),
        ([TASK, "seed=[1"], "'seed=[1' is not a setting - allowed: key=value"),
        ([TASK, "a b"], "'a b' is not a setting - allowed: key=value"),
        ([TASK, "task.name=zoo/digit"], "task=zoo/digit is not a task; closest: zoo/digits."),
        ([TASK, "task.blocks=9"], "task.blocks=9"),
        (["rule=ssgd"], "task is missing - allowed: "),
    ],
)
def test_a_mistake_is_one_line_that_names_the_value(words: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settle(*words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_sweep_has_every_combination_in_order() -> None:
    sweep = compose.parse([TASK, "rule=ssgd,easgd", "seed=range(0,3)"])
    assert sweep.jobs() == [
        [TASK, f"rule={rule}", f"seed={seed}"] for rule in ("ssgd", "easgd") for seed in range(3)
    ]
    samples = sweep.samples()
    assert len(samples) == 4
    assert {word for words in samples for word in words} == {
        word for words in sweep.jobs() for word in words
    }


def test_the_text_under_a_field_is_its_help() -> None:
    texts = config.describe(config.RunConfig)
    assert texts["progress"] == "auto, live, plain or none."
    assert set(texts) == {"minibatches", "eval_every", "precision", "compile", "clip"} | {
        "accumulate", "ema", "lease_s", "threads", "ahead", "progress", "dir", "device", "numa",
        "extras"
    }  # fmt: skip


def test_a_parts_schema_has_its_name_first_and_its_fields() -> None:
    @dataclass
    class Part:
        width: int = 3
        sizes: list[int] = field(default_factory=lambda: [1])

    made = config.named("a/part", Part)()
    assert (made.name, made.width, made.sizes) == ("a/part", 3, [1])


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    assert config.run_folder("mine", "auto", str(root), "now") == "mine"
    assert config.run_folder("", "auto", str(root), "now") == f"{root}/now"
    for age, name in enumerate(("a", "b", "c")):
        (root / name).mkdir(parents=True)
        if name != "c":  # a folder without config.json never ran
            (root / name / "config.json").write_text("{}")
            os.utime(root / name / "config.json", (100 - age, 100 - age))
    assert config.run_folder("", "auto", str(root), "now") == str(root / "a")
    assert config.run_folder("", "", str(root), "now") == f"{root}/now"
