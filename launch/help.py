"""The help pages of ``dlp``; their words come from docstrings, so they cannot go stale."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dlplatform.config import ClusterConfig, Config, PipelineConfig, RunConfig, describe
from dlplatform.rules.rule import rules
from dlplatform.task import tasks
from launch.slurm.settings import SlurmConfig

Rows = Iterable[tuple[str, str]]

VERBS = {
    "Train": (
        ("train", "train a task on memory boxes; sweeps with -m"),
        ("submit", "put a job, or with -m a sweep, into Slurm's queue"),
        ("sweep", "table and picture of a sweep: FOLDER"),
        ("join", "more workers for a running job: FOLDER, or ADDRESS[,ADDRESS...]"),
        ("eval", "score a run's checkpoint: run=FOLDER split=test"),
        ("predict", "answer for files: run=FOLDER FILE..."),
        ("export", "write a run's networks for ONNX Runtime: run=FOLDER FILE.onnx"),
    ),
    "Memory boxes": (
        ("box", "run a memory box by hand: --bind tcp://HOST:PORT"),
        ("box status|top URI", "what running boxes hold and move, once or live"),
        ("box drain|snapshot URI", "end a box with its last job; write its jobs to its folder"),
        ("bench", "measure the boxes beside this machine's own limits"),
    ),
    "Look around": (
        ("tasks", "list what can be trained"),
        ("doctor", "say what this machine has, what is missing and how to get it"),
    ),
}
EXAMPLES = (
    ("dlp train task=zoo/digits rule=hybrid workers=4 boxes=2", "4 workers, 2 boxes, here"),
    ("dlp train task=zoo/digits workers=4 launcher=mpirun", "the same through mpirun"),
    ("mpirun -n 4 dlp train task=zoo/digits rule=ssgd", "the ranks are the workers"),
    ("dlp submit task=zoo/digits workers=8 slurm.nodes=2 slurm.time=30", "a job of Slurm"),
    ("dlp train -m task=zoo/digits rule=ssgd,easgd seed=0,1", "four jobs and a table"),
    ("dlp train task=zoo/digits run.dir=outputs/a resume=auto", "go on where it stopped"),
    ("dlp train task=zoo/digits cluster.boxes=[tcp://10.0.0.1:7000]", "on boxes of dlp box"),
)
PARTS = ("task", "rule", "cluster", "run", "pipeline", "slurm")
OPTIONS = (
    ("-m, --multirun", "sweep: every combination of a=1,2 b=x,y is a job of its own"),
    ("--cfg job", "print the composed configuration and stop (--resolve, -p PACKAGE)"),
    ("--dry-run", "print the processes that would be started and stop"),
    ("-cd, --config-dir DIR", "look for configuration groups in a folder of yours, too"),
    ("--info, --hydra-help", "what Hydra itself knows"),
)
CODES = (
    ("0", "done"), ("1", "bug"), ("2", "usage or configuration"), ("3", "environment missing"),
    ("4", "box or worker lost"), ("5", "diverged"), ("75", "preempted, with checkpoint"),
    ("130", "Ctrl-C"),
)  # fmt: skip
PAGES = {
    "submit": (
        "dlp submit task=NAME [setting=value ...] [--template FILE] [--dry-run] [-m]",
        (
            ("setting=value", "those of dlp train; slurm.* are below"),
            ("--template FILE", "the job's script with {{places}} to fill (slurm.template=FILE)"),
            ("--dry-run", "print the script that would be submitted, and stop"),
            ("-m, --multirun", "a sweep, as one array; its table: dlp sweep FOLDER"),
            ("", "dlp train launcher=slurm ... submits, too, and stays to the end."),
        ),
    ),
    "sweep": (
        "dlp sweep FOLDER",
        (("FOLDER", "of a sweep that has run, or still runs: multirun/TASK/TIME"),),
    ),
    "eval": (
        "dlp eval run=FOLDER|task=NAME [split=test] [which=latest] [device=cpu] [--json]",
        (
            ("run", "folder of a finished or stopped run"),
            ("task", "instead: the newest run of this task in outputs or multirun"),
            ("split", "train, val or test"),
            ("which", "best or latest checkpoint"),
            ("device", "auto (a GPU if there is one), cpu, cuda or cuda:N"),
            ("--json", "print JSON instead of a table"),
        ),
    ),
    "predict": (
        "dlp predict run=FOLDER|task=NAME FILE... [which=latest] [device=cpu] [--json]",
        (
            ("run", "folder of a finished or stopped run"),
            ("task", "instead: the newest run of this task in outputs or multirun"),
            (
                "FILE",
                "what the task takes: images for zoo/digits; or a folder of pictures",
            ),
            ("which", "best or latest checkpoint"),
            ("device", "auto (a GPU if there is one), cpu, cuda or cuda:N"),
            ("--json", "print JSON instead of a table"),
        ),
    ),
    "export": (
        "dlp export run=FOLDER|task=NAME FILE.onnx [which=latest] [--json]",
        (
            ("run", "folder of a finished or stopped run"),
            ("task", "instead: the newest run of this task in outputs or multirun"),
            ("FILE.onnx", "to write; detectors take the pixels of a picture, others their example"),
            ("which", "best or latest checkpoint"),
            ("--json", "print JSON instead of a table"),
        ),
    ),
    "join": (
        "dlp join FOLDER | ADDRESS[,ADDRESS...] [--workers N] [--secret-file FILE] [--job NAME]",
        (
            ("FOLDER", "run.dir of a running job, on this host or a shared file system"),
            ("ADDRESS", "the job's boxes in their order: shm://NAME, tcp://HOST:PORT, tls://..."),
            ("--workers N", "processes to start here (default: 1)"),
            ("--secret-file FILE", "the secret of the boxes (default: ~/.dlplatform/secret)"),
            ("--ca FILE", "PEM file that vouches for tls:// (default: DLP_CA, or the system)"),
            ("--job NAME", "the job's name, where the boxes serve several"),
            ("--dir FOLDER", "folder for the logs, rank-N.log (default: that of the run)"),
            ("", "Ctrl-C or SIGTERM: leave; the job goes on. asgd and easgd can be joined."),
        ),
    ),
    "tasks": ("dlp tasks", (("", "one line for every task that is installed"),)),
    "doctor": ("dlp doctor", (("", "exit code 3 when something required is missing"),)),
}


def first_line(cls: type) -> str:
    """Return the first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def overview() -> None:
    """Print ``dlp --help``."""
    console = _console()
    console.print("[bold]dlp[/] - train PyTorch models on memory boxes\n")
    console.print("[bold]usage:[/] dlp VERB ...        help of one verb: dlp VERB --help")
    for title, rows in VERBS.items():
        _section(console, title, rows)
    _examples(console)
    _section(console, "Rules  (rule=NAME)", _docs(rules()))
    _section(console, "Tasks  (task=NAME)", _docs(tasks()))
    codes = ", ".join(f"{code} {text}" for code, text in CODES)
    console.print(f"\n[dim]exit codes: {codes}[/]")


def verb_help(verb: str, words: Sequence[str] = ()) -> None:
    """Print the help of one verb; ``task=NAME`` and ``rule=NAME`` among the words narrow it."""
    console = _console()
    if verb == "train":
        _train(console, dict(w.split("=", 1) for w in words if "=" in w))
        return
    usage, rows = PAGES[verb]
    console.print(f"[bold]usage:[/] {escape(usage)}")
    _section(console, "Arguments" if rows[0][0] else "", rows)
    if verb == "submit":
        _section(console, "slurm.*", _settings(SlurmConfig, "slurm."))


def tasks_table(words: Sequence[str] = ()) -> None:
    """Print ``dlp tasks``."""
    table = Table("task", "what it is", "size", "test score", "source", box=None, pad_edge=False)
    for name, cls in tasks().items():
        score = f"{cls.primary} {cls.expected}".strip()
        table.add_row(name, first_line(cls), size(cls.parameters), score, cls.source)
    _console().print(table)


def size(parameters: int) -> str:
    """Return a number of values that a network trains, in words of a table."""
    if not parameters:
        return ""
    return f"{parameters / 1e3:.0f} k" if parameters < 1e6 else f"{parameters / 1e6:.1f} M"


def _train(console: Console, chosen: dict[str, str]) -> None:
    console.print("[bold]usage:[/] dlp train task=NAME \\[setting=value ...] \\[options]")
    console.print("Trains a task; every setting below can be given as key=value.")
    _examples(console)
    _section(console, "The job", _settings(Config, "", skip=PARTS))
    _section(console, "run.*", _settings(RunConfig, "run."))
    _section(console, "cluster.*", _settings(ClusterConfig, "cluster."))
    _section(console, "pipeline.*", _settings(PipelineConfig, "pipeline."))
    _section(console, "slurm.*  (launcher=slurm)", _settings(SlurmConfig, "slurm."))
    for group, known in (("rule", rules()), ("task", tasks())):
        _section(console, f"{group}=NAME", _docs(known))
        cls = known.get(chosen.get(group, ""))
        if cls is None:
            console.print(
                f"  [dim]settings of one: dlp train {group}={next(iter(known))} --help[/]"
            )
        else:
            _section(console, f"{group}.* of {chosen[group]}", _settings(cls, f"{group}."))
    presets = "experiment=zoo/digits  run=quick  debug=quick|alone  cluster=shm|tcp  sweep=rules"
    _section(console, "Presets", ((presets, ""),))
    _section(console, "Options", OPTIONS)


def _examples(console: Console) -> None:
    wide = console.width >= 100
    _section(console, "Examples", [(line, text if wide else "") for line, text in EXAMPLES])


def _docs(known: dict[str, Any]) -> Rows:
    return [(name, first_line(cls)) for name, cls in known.items()]


def _settings(cls: type, prefix: str, skip: Sequence[str] = ()) -> Rows:
    texts = describe(cls)
    rows = []
    for field in dataclasses.fields(cls):
        text = texts.get(field.name, "").replace("``", "").replace("None:", "null:")
        if prefix in ("task.", "rule.") and field.name == "seed":
            rows.append((f"{prefix}seed=${{seed}}", "The job's seed, unless given."))
        elif field.name not in skip:
            rows.append((f"{prefix}{field.name}={_default(field)}", text))
    return rows


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "..."
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, default=str)


def _section(console: Console, title: str, rows: Rows) -> None:
    if title:
        console.print(f"\n[bold]{escape(title)}[/]")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=12)
    table.add_column(style="dim" if title == "Examples" else "")
    for name, text in rows:
        table.add_row(Text(f"  {name}", style="cyan"), Text(text))
    console.print(table)


def _console() -> Console:
    console = Console(highlight=False)
    # Wide enough for an example and its comment where the width is unknown (a pipe, a log).
    return console if console.is_terminal else Console(highlight=False, width=110)
