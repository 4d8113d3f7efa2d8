"""The verbs ``train`` and ``submit``: compose with Hydra, refuse early, then launch, or sweep."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from dlplatform.config import launchers
from dlplatform.errors import PlatformError, UsageError
from dlplatform.meeting import way
from dlplatform.memorybox import wire
from dlplatform.memorybox.options import Options
from dlplatform.worker import train_as_rank
from dlplatform.world import World, die_with_parent, mpi, share

Job = Callable[[dict[str, Any]], float]
# Refusals: nothing was trained, so nothing is worth keeping.
REFUSED = (2, 3, 4)


@dataclass
class Request:
    """What the user typed after ``dlp train``."""

    words: list[str]
    """Overrides, as typed."""
    flags: list[str]
    """Hydra's own options, to be handed on."""
    multirun: bool = False
    look: bool = False
    """Only show something (a configuration, Hydra's help); train nothing."""
    dry_run: bool = False
    wait: bool = True
    """Whether to stay until a job that Slurm runs has ended."""
    name: str = "train"
    folder: str | None = None


def parse(argv: Sequence[str]) -> Request:
    """Parse the words after ``dlp train``: settings, Hydra's options and ``--dry-run``."""
    parser = Options(prog="dlp train", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-r", "--run", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("-i", "--info", nargs="?", const="all")
    for flag in ("--resolve", "--hydra-help", "--dry-run"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    for short, long in (("-p", "package"), ("-cn", "config-name"), ("-cd", "config-dir")):
        parser.add_argument(short, f"--{long}")
    known = parser.parse_intermixed_args(list(argv))
    return Request(
        words=known.words,
        flags=_flags(known),
        multirun=known.multirun,
        look=bool(known.cfg or known.info or known.hydra_help or known.shell_completion),
        dry_run=known.dry_run,
        name=known.config_name or "train",
        folder=known.config_dir and os.path.abspath(known.config_dir),
    )


def _flags(known: argparse.Namespace) -> list[str]:
    flags = []
    for name, value in vars(known).items():
        if name not in ("words", "dry_run") and value:
            flags.append(f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}"))
    return flags


def train(argv: Sequence[str]) -> int:
    """Run ``dlp train``; under mpirun, srun or torchrun rank 0 composes and the others follow."""
    world = World.detect()
    if world.launcher in ("", "dlp"):
        _submit(parse(argv), _launch, None)
        return 0
    die_with_parent()
    with ExitStack() as session:
        lent = session.enter_context(mpi()) if world.mpi else None
        if world.rank == 0:
            _lead(argv, world, lent, session.close)
            return 0
        told = share(None)
        if "exit" in told:
            return int(told["exit"])
        os.environ[wire.SECRET] = told["secret"]
        train_as_rank(lent, told["config"], session.close)
    return 0


def enqueue(argv: Sequence[str]) -> int:
    """Run ``dlp submit``: put a job, or a sweep, into Slurm's queue and leave it there."""
    parser = Options(prog="dlp submit", add_help=False, allow_abbrev=False)
    parser.add_argument("--template")
    own, rest = parser.parse_known_args(list(argv))
    request = parse(rest)
    for word in request.words:
        if word.startswith("launcher=") and word != "launcher=slurm":
            raise UsageError(
                f"{word} in dlp submit - allowed: launcher=slurm - do: leave it out, or dlp train"
            )
    request.words.append("launcher=slurm")
    if own.template:
        request.words.append(f"slurm.template={own.template}")
    request.wait = False
    from launch.slurm import submission

    _submit(request, submission.leave, None)
    return 0


def _lead(argv: Sequence[str], world: World, lent: Any, end_mpi: Callable[[], None]) -> None:
    """Compose on rank 0 and tell the other ranks what to do, also when nothing is to be done."""
    told: list[dict[str, Any]] = []

    def tell(message: dict[str, Any]) -> None:
        told.append(message)
        share(message)

    def run(config: dict[str, Any]) -> float:
        if config["cluster"]["transport"] == "mpi" and not world.mpi:
            raise UsageError(
                f"transport=mpi under {world.launcher} - allowed: mpirun - do: mpirun -n "
                f"{world.size} dlp train ..., or transport=tcp"
            )
        with _boxes(config, world) as ready:
            tell({"config": ready, "secret": os.environ.get(wire.SECRET, "")})
            return train_as_rank(lent, ready, end_mpi)

    code = 1
    os.environ.setdefault("DLP_PROGRESS", "live" if _launcher_has_terminal() else "plain")
    try:
        request = parse(argv)
        if request.multirun:
            raise UsageError(
                f"-m under {world.launcher} - allowed: one job for all ranks - do: dlp train -m "
                "launcher=mpirun ..."
            )
        _submit(request, run, world.size)
        code = 0
    except PlatformError as error:
        code = error.exit_code
        raise
    finally:
        if not told:
            tell({"exit": code})
            end_mpi()


def _launcher_has_terminal() -> bool:
    """Ask the launcher's own output: the ranks' is a pseudo terminal, also if that is a file."""
    try:
        name = os.readlink(f"/proc/{os.getppid()}/fd/1")
    except OSError:
        return False
    return name.startswith(("/dev/pts/", "/dev/tty", "/dev/console"))


@contextmanager
def _boxes(config: dict[str, Any], world: World) -> Iterator[dict[str, Any]]:
    """Start the boxes of all ranks here: they belong in the one message, unless they are ranks."""
    from dlplatform.memorybox.process import Boxes

    cluster = config["cluster"]
    if cluster["boxes"] or config["workers"] == 1 or cluster["transport"] == "mpi":
        yield config
        return
    transport, host = way(world, cluster["transport"])
    with Boxes(config["boxes"], transport, cluster["memory"], host=host) as boxes:
        os.environ[wire.SECRET] = boxes.secret
        yield {**config, "cluster": {**cluster, "boxes": boxes.addresses}}


def _launch(config: dict[str, Any]) -> float:
    return float(launchers()[config["launcher"]].load().run(config))


def _submit(request: Request, run: Job, workers: int | None) -> None:
    """Check every job that was asked for, then let Hydra run them."""
    from launch import compose

    compose.register()
    if request.look:
        with compose.one_line(request.words), _hydra_arguments(request, request.words):
            _through(_hydra, lambda config: None)
        return

    @cache  # for this request: it takes a fifth of a second
    def compose_once(*words: str) -> Any:
        return compose.compose(list(words), request.name, request.folder)

    sweep = compose.parse(request.words)
    composed = compose_once(*sweep.samples()[0])
    sweep, multirun = _with_params(sweep, request, composed)
    if sweep.swept and not multirun:
        key = sweep.swept[0].key
        raise UsageError(
            f"{key} has several values - allowed: one - do: dlp train -m ... to sweep over them, "
            f"or {key}=[a,b] for a list"
        )
    configs = [_checked(compose_once(*words), workers) for words in sweep.samples()]
    if multirun and _as_array(request, sweep, composed, configs):
        _array(request, sweep, composed)
    elif request.dry_run:
        _dry_run(compose_once, sweep)
    elif multirun:
        _sweep(request, sweep, run, composed)
    else:
        _through(partial(compose.run, composed), lambda config: _one(config, run, workers))


def _with_params(sweep: Any, request: Request, composed: Any) -> tuple[Any, bool]:
    """Add the sweep that the configuration itself asks for (``sweep=rules``)."""
    from launch import compose

    multirun = request.multirun or str(composed.hydra.mode).endswith("MULTIRUN")
    params = composed.hydra.sweeper.get("params") if multirun else None
    if not params:
        return sweep, multirun
    own = [f"{key}={value}" for key, value in params.items()]
    return compose.parse([*own, *sweep.fixed, *(one.line for one in sweep.swept)]), True


def _checked(composed: Any, workers: int | None) -> dict[str, Any]:
    """Settle a configuration; ``workers`` is what an outer launcher started."""
    from launch import compose

    typed = [str(word) for word in composed.hydra.overrides.task]
    wanted = [int(word[8:]) for word in typed if word.startswith("workers=") and word[8:].isdigit()]
    config = compose.settle(composed, workers)
    if workers is not None and wanted and wanted[-1] != (started := config["workers"]):
        raise UsageError(
            f"workers={wanted[-1]} under a launcher that started {started} - allowed: {started} - "
            "do: leave workers out, the ranks are the workers (and the boxes, with transport=mpi)"
        )
    if not config["run"]["dir"]:
        config["run"]["dir"] = str(composed.hydra.run.dir)
    return config


def _dry_run(compose_once: Callable[..., Any], sweep: Any) -> None:
    for words in sweep.jobs():
        config = _checked(compose_once(*words), None)
        if sweep.swept:
            print("#", *words)
        print(*launchers()[config["launcher"]].load().plan(config), sep="\n")


@contextmanager
def _hydra_arguments(request: Request, words: Sequence[str]) -> Iterator[None]:
    """Show Hydra a command line of ours, and keep it from printing errors of its own."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["dlp train", *request.flags, *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _hydra(job: Callable[[Any], Any]) -> None:
    """Run what ``sys.argv`` asks Hydra for."""
    import hydra

    hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")(job)()


def _through(
    start: Callable[[Callable[[Any], Any]], None], job: Callable[[Any], float | None]
) -> None:
    """Have Hydra ``start`` the job or jobs; raise the first error of a job afterwards.

    Hydra would report an error that passes through it in its own words.
    """
    failed: list[Exception] = []
    process = os.getpid()

    def quiet(composed: Any) -> float | None:
        try:
            return job(composed)
        except Exception as error:
            if os.getpid() != process:  # a launcher of Hydra's brought the job elsewhere
                raise
            failed.append(error)
            return math.nan

    start(quiet)
    if failed:
        raise failed[0]


def _one(composed: Any, run: Job, workers: int | None, tidy: bool = True) -> float:
    """Run one job that Hydra composed, in the folder it made; tidy up when it is refused."""
    from hydra.core.hydra_config import HydraConfig

    from launch import compose

    config = compose.settle(composed, workers)
    config["run"]["dir"] = HydraConfig.get().runtime.output_dir
    with _tidied(Path(config["run"]["dir"])) if tidy else nullcontext():
        return run(config)


@contextmanager
def _tidied(folder: Path) -> Iterator[None]:
    """Tidy up when what runs in a folder is refused."""
    try:
        yield
    except PlatformError as error:
        if error.exit_code in REFUSED:
            _tidy(folder)
        raise


def _tidy(folder: Path) -> None:
    """Remove the folder of a run that never trained, and parents that it leaves empty."""
    names = [path.name for path in folder.rglob("*") if path.stat().st_size and path.is_file()]
    kept = ("result.json", "slurm.log")  # what a job said, elsewhere, is nowhere else
    if any(name.endswith((".safetensors", ".jsonl")) or name in kept for name in names):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.absolute().parents)[:3]:
        try:
            if Path.cwd().is_relative_to(parent):
                return
            parent.rmdir()
        except OSError:
            return


# -- sweeps ------------------------------------------------------------------------------------


def _sweep(request: Request, sweep: Any, run: Job, composed: Any) -> None:
    """Let Hydra's sweeper and launcher run the jobs, then sum up."""
    from launch.sweep import jobs

    words, root = [*sweep.fixed, *(one.line for one in sweep.swept)], jobs.root(composed)
    if not any(word.startswith("hydra.sweep.dir=") for word in words):
        words.append(f"hydra.sweep.dir={root}")
    one = partial(_one, run=run, workers=None, tidy=False)
    try:
        with _hydra_arguments(request, words):
            _through(_hydra, jobs.Sweeping(one, len(sweep.jobs())).job)
    finally:
        rows = jobs.conclude(root)
    jobs.raise_first(rows)


def _as_array(
    request: Request, sweep: Any, composed: Any, configs: Sequence[dict[str, Any]]
) -> bool:
    """Tell whether a sweep is to be one array of Slurm, all jobs in the queue at once."""
    from launch.slurm import allocation
    from launch.sweep import jobs

    plain = jobs.check(sweep, composed, request.wait)
    slurm = all(config["launcher"] == "slurm" for config in configs)
    return slurm and plain and not (request.wait and allocation.inside())


def _array(request: Request, sweep: Any, composed: Any) -> None:
    """Submit the jobs of a sweep as one array of Slurm."""
    from launch import compose
    from launch.slurm import submission
    from launch.sweep import jobs

    root = jobs.root(composed).absolute()
    found = []
    for words in sweep.jobs():
        one = jobs.baseline(compose.compose(words, request.name, request.folder))
        found.append((words, _checked(one, None)))
    if request.dry_run:
        print(*submission.plan([config for _, config in found], root), sep="\n")
        return
    with _tidied(root):
        jobs.array(found, root, request.wait)
