"""Configuration: dataclasses are the truth, Hydra composes them, one line reports a mistake."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from dlplatform.errors import UsageError, closest
from dlplatform.plugins import plugins


@dataclass
class ClusterConfig:
    """The memory boxes of a job."""

    transport: str = "auto"
    """How workers reach boxes started for this job: auto, inproc, shm, tcp, verbs or mpi."""
    boxes: list[str] = field(default_factory=list)
    """Addresses of running boxes, in order; empty: the job starts ``boxes`` of its own."""
    secret_file: str = ""
    """File (mode 0600) with the secret of the running boxes."""
    ca: str = ""
    """PEM file that vouches for boxes at ``tls://``; empty: DLP_CA, or what the system trusts."""
    replicas: int = 0
    """1: each box is mirrored by the next one, and workers go on there when it dies."""
    memory: str = "/dev/shm"
    """Where boxes take their memory: a tmpfs folder, or ``memfd``."""
    hosts: list[str] = field(default_factory=list)
    """Machines for launcher=ssh, as NAME or NAME:WORKERS; the first ones have the boxes."""
    agent: str = "ssh -o BatchMode=yes -o ServerAliveInterval=5"
    """What starts a process on one of them: called as AGENT HOST COMMAND."""
    pool_gib: float = 0.0
    """Memory of a box that is an MPI rank, in GiB; 0: a quarter of its host's, if it is alone."""
    job: str = ""
    """Name of the job inside the boxes; empty: made up. Two jobs never share a name."""
    timeout_s: float = 60.0
    """Seconds to wait for a box to answer and for all workers to join."""


@dataclass
class RunConfig:
    """One training run."""

    minibatches: int | None = None
    """Minibatches the whole job trains; None: what the task recommends."""
    eval_every: int | None = None
    """Minibatches between evaluations and checkpoints; None: a tenth of the run."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast; weights and exchange stay fp32)."""
    compile: bool = False
    """torch.compile the networks."""
    clip: float = 0.0
    """Largest norm of a group's gradient before the exchange; 0: no clipping."""
    accumulate: int = 1
    """Minibatches of one worker whose gradients form one step."""
    ema: float = 0.0
    """Decay of the moving average of weights that is evaluated; 0: none."""
    lease_s: float = 60.0
    """Seconds after which a number that a living worker still holds is given out again; 0: never.

    Longer than any step, or slow steps are done twice; a worker that hangs delays the end so long.
    """
    device: str = "auto"
    """Where networks are trained: cpu, cuda (the host's GPUs in turn), cuda:N, or auto."""
    threads: int = 0
    """Compute threads of one worker; 0: cores / workers on this host."""
    ahead: str = "auto"
    """Read the next minibatch while one is trained: 0, 1, or auto: on a GPU.

    On a CPU the cores are busy with training; 1 helps there where reading waits for a disk.
    """
    numa: bool = True
    """Keep each worker to one NUMA node, where the host has several."""
    progress: str = "auto"
    """auto, live, plain or none."""
    extras: bool = True
    """Baselines, pictures and TensorBoard; false: scores, metrics.jsonl and checkpoints only."""
    dir: str = ""
    """Folder of the run; empty: Hydra's output folder."""


@dataclass
class PipelineConfig:
    """How the stages of a network work together, when ``stages`` is above 1."""

    schedule: str = "1f1b"
    """1f1b (the result is the unsplit network's) or async (never empty, stale by a few steps)."""
    microbatches: int = 4
    """Micro-batches of one minibatch: more keep the stages busier."""


@dataclass
class Config:
    """A whole job: ``dlp train task=... rule=... workers=... boxes=...``."""

    task: Any = None
    rule: Any = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    slurm: Any = None
    transport: str = "auto"
    """Short for ``cluster.transport``; with mpi, ``boxes`` of mpirun's ranks are boxes."""
    workers: int = 1
    """Worker processes this machine starts; under mpirun the ranks are the workers."""
    stages: int = 1
    """Stages a network is cut into, one a worker; workers / stages pipelines share the data."""
    boxes: int = 1
    """Memory boxes the job starts."""
    seed: int = 0
    """Start of every random number of the job."""
    resume: str = ""
    """Empty: start anew; ``auto``: from ``latest`` in run.dir if there; or a run folder."""
    launcher: str = "local"
    """local (plain processes), ssh (several machines), mpirun or slurm."""


def describe(cls: type) -> dict[str, str]:
    """Return the text under each field of a dataclass, its bases' fields included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if dataclasses.is_dataclass(base):
            texts |= _texts(base)
    return texts


def _texts(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # a class made at run time has no source
        return {}
    body = tree.body[0].body  # type: ignore[attr-defined]
    return {
        node.target.id: " ".join(text.value.value.split())
        for node, text in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def named(name: str, cls: type) -> type:
    """Return a plain dataclass with the fields of ``cls`` and its registered ``name`` in front."""
    hints = get_type_hints(cls)
    fields: list[Any] = [("name", str, field(default=name))]
    for one in dataclasses.fields(cls):
        if one.name == "seed":  # the job's seed, unless it is given a value of its own
            default = field(default="${seed}")
        elif one.default is not dataclasses.MISSING:
            default = field(default=one.default)
        elif one.default_factory is not dataclasses.MISSING:
            default = field(default_factory=one.default_factory)
        else:
            default = field(default="???")
        fields.append((one.name, hints[one.name], default))
    return dataclasses.make_dataclass(cls.__name__, fields)


def launchers() -> dict[str, Any]:
    """Return the entry points of all launchers by name."""
    return {entry.name: entry for entry in plugins("launchers")}


@dataclass(frozen=True)
class Check:
    """A test of one value, what passes it in words, and what to write instead."""

    passes: Callable[[Any], bool]
    allowed: str
    instead: str


def _whole(low: int, high: int, instead: int) -> Check:
    return Check(lambda v: type(v) is int and low <= v <= high, f"{low} to {high}", str(instead))


def _optional(instead: int) -> Check:
    return Check(
        lambda v: v is None or (type(v) is int and v >= 1), "1 or more, or null", str(instead)
    )


def _choice(*words: str) -> Check:
    return Check(lambda v: v in words, ", ".join(words), words[0])


def _real(passes: Callable[[float], bool], allowed: str, instead: float) -> Check:
    return Check(lambda v: isinstance(v, int | float) and passes(v), allowed, str(instead))


def _place(path: str) -> bool:
    return path == "memfd" or (os.path.isdir(path) and os.access(path, os.W_OK))


def _folder(path: str) -> bool:
    return not os.path.exists(path) or os.path.isdir(path)


ADDRESS = re.compile(
    r"(?!tcp:|tls:|verbs:)[a-z]\w*://\S+|(tcp|tls|verbs)://(\[[\w:.]+\]|[\w.-]+):\d{1,5}"
)

TRANSPORTS = _choice("auto", "inproc", "shm", "tcp", "verbs", "mpi")
CHECKS: Mapping[str, Check] = {
    "transport": TRANSPORTS,
    "workers": _whole(1, 4096, 4),
    "stages": _whole(1, 64, 2),
    "boxes": _whole(1, 1024, 2),
    "seed": _whole(0, 2**32 - 1, 0),
    "run.minibatches": _optional(2000),
    "run.eval_every": _optional(200),
    "run.precision": _choice("fp32", "bf16"),
    "run.clip": _real(lambda v: 0 <= v < math.inf, "0 or more", 1.0),
    "run.accumulate": _whole(1, 32, 1),
    "run.ema": _real(lambda v: 0 <= v < 1, "0 up to, not including, 1", 0.999),
    "run.lease_s": _real(lambda v: 0 <= v < math.inf, "0 or more", 60),
    "run.device": Check(
        lambda v: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(v))),
        "auto, cpu, cuda, cuda:N",
        "auto",
    ),
    "run.threads": _whole(0, 4096, 0),
    "run.ahead": _choice("auto", "0", "1"),
    "pipeline.schedule": _choice("1f1b", "async"),
    "pipeline.microbatches": _whole(1, 1024, 4),
    "run.progress": _choice("auto", "live", "plain", "none"),
    "run.dir": Check(_folder, "a folder, new or not", "outputs/mine"),
    "cluster.transport": TRANSPORTS,
    "cluster.secret_file": Check(
        lambda v: not v or os.path.isfile(v), "an existing file", "~/box.secret"
    ),
    "cluster.ca": Check(lambda v: not v or os.path.isfile(v), "an existing file", "~/box.pem"),
    "cluster.replicas": _whole(0, 1, 0),
    "cluster.memory": Check(_place, "a writable folder in memory, or memfd", "/dev/shm"),
    "cluster.pool_gib": _real(lambda v: 0 <= v < math.inf, "0 or more", 1.0),
    "cluster.timeout_s": _real(lambda v: 0 < v < math.inf, "above 0", 60),
}


def validate(config: Mapping[str, Any]) -> None:
    """Refuse a job whose settings cannot work, before anything is started or written.

    Raises:
        UsageError: one line with the value, what is allowed and what to do.
    """
    _check_complete(Config, config, "")
    for key, check in CHECKS.items():
        value = _find(config, key)
        if not check.passes(value):
            shown = "null" if value is None else value
            raise UsageError(
                f"{key}={shown} cannot work - allowed: {check.allowed} - do: {key}={check.instead}"
            )
    _check_names(config)
    _check_addresses(config)
    _check_resume(str(config["resume"]))
    task, _ = build_parts(config)
    if config["stages"] > 1:
        _check_stages(config, task)


def _check_stages(config: Mapping[str, Any], task: Any) -> None:
    """Refuse what does not go together with stages."""
    from dlplatform.task import Task

    stages, workers = config["stages"], config["workers"]
    if workers % stages:
        raise UsageError(
            f"stages={stages} of {workers} worker(s) - allowed: workers a multiple of stages - do: "
            f"workers={-(-workers // stages) * stages}"
        )
    # Several backwards make one step, of a part of the network each.
    for key, usual in (("run.accumulate", 1), ("run.compile", False), ("rule.bucket_mb", 0)):
        group, _, name = key.partition(".")
        if (value := config[group].get(name, usual)) != usual:
            raise UsageError(
                f"{key}={value} with stages={stages} - allowed: {key}={usual} - do: use larger "
                "minibatches and more pipeline.microbatches, or stages=1"
            )
    if (where := str(config["run"]["device"])) not in ("auto", "cpu"):
        raise UsageError(
            f"run.device={where} with stages={stages} - allowed: run.device=cpu - do: leave it "
            "out, or stages=1"
        )
    if type(task).split is Task.split:
        task.split({}, stages)  # says why not


def _check_complete(cls: type, config: Mapping[str, Any], prefix: str) -> None:
    for one in dataclasses.fields(cls):
        if one.name not in config:
            raise UsageError(
                f"{prefix}{one.name} is missing - allowed: every setting has a value - do: "
                f"leave out ~{prefix}{one.name}"
            )
    parts = (("cluster", ClusterConfig), ("run", RunConfig), ("pipeline", PipelineConfig))
    for name, part in parts:
        if cls is Config:
            _check_complete(part, config[name], f"{name}.")


def _find(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _check_names(config: Mapping[str, Any]) -> None:
    known, launcher = launchers(), config["launcher"]
    if launcher not in known:
        raise UsageError(
            f"launcher={launcher} is not a launcher{closest(str(launcher), known)}. "
            f"Allowed: {', '.join(known)}"
        )
    if config["cluster"]["transport"] == "inproc" and config["workers"] > 1:
        raise UsageError(
            f"cluster.transport=inproc serves one worker: workers={config['workers']} - allowed: "
            "workers=1 - do: cluster.transport=auto"
        )


def _check_addresses(config: Mapping[str, Any]) -> None:
    for address in config["cluster"]["boxes"]:
        if not ADDRESS.fullmatch(str(address)):
            raise UsageError(
                f"cluster.boxes={address} is not an address - allowed: tcp://HOST:PORT, also "
                "with tls or verbs, shm://NAME - do: copy the line that dlp box prints"
            )


def _check_resume(resume: str) -> None:
    if resume not in ("", "auto") and not os.path.isdir(resume):
        raise UsageError(
            f"resume={resume} is not a run folder - allowed: auto, or the folder of a run - do: "
            "ls outputs/*/*"
        )


def build_parts(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the task and the rule of a configuration, built from their fields."""
    from dlplatform.rules.rule import find_rule
    from dlplatform.task import find_task

    parts = []
    for group, find in (("task", find_task), ("rule", find_rule)):
        chosen = dict(config[group] or {})
        if not chosen.get("name"):
            raise UsageError(f"{group} is missing - do: dlp train task=NAME, see dlp tasks")
        try:
            parts.append(find(str(chosen.pop("name")))(**chosen))
        except (TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{group}: {error} - do: dlp train --help") from None
    return parts[0], parts[1]


def run_folder(wanted: str, resume: str, root: str, now: str) -> str:
    """Return the folder of a run: the wanted one, the newest one to resume, or a new one."""
    if wanted:
        return wanted
    if resume == "auto" and Path(root).is_dir():
        runs = [folder for folder in Path(root).iterdir() if (folder / "config.json").exists()]
        if runs:
            return str(max(runs, key=lambda folder: (folder / "config.json").stat().st_mtime))
    return f"{root}/{now}"
