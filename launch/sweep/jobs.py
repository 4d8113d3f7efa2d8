"""Run the jobs of a sweep, one by one or as one array of Slurm, and sum up what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlplatform.errors import PlatformError, UsageError
from dlplatform.memorybox.options import Options
from launch.job import failure
from launch.sweep import summary


@dataclass
class Sweeping:
    """A sweep in Hydra's hands, which may bring its jobs elsewhere."""

    one: Callable[[Any], float]
    """Runs one composed job."""
    total: int
    """How many there are; 0: the sweeper decides."""

    def job(self, composed: Any) -> float:
        """Run one job after a line that says which it is.

        What it fails with goes into its folder, which those who sum up can read; its score is
        then the worst there is, with which a sweeper can go on.
        """
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        number, of = int(hydra.job.num), f" of {self.total}" if self.total else ""
        print(f"dlp: job {number + 1}{of}: {' '.join(hydra.overrides.task)}", flush=True)
        try:
            return self.one(baseline(composed))
        except PlatformError as error:
            told = {"exit": error.exit_code, "error": str(error)}
            (Path(hydra.runtime.output_dir) / summary.FAILED).write_text(json.dumps(told))
            return -math.inf


def check(sweep: Any, composed: Any, wait: bool) -> bool:
    """Refuse a sweep that its sweeper cannot do; tell whether Hydra's basic parts run it.

    Args:
        sweep: the command line's (``launch.compose.Sweep``).
        composed: the configuration of one job, Hydra's part included.
        wait: whether somebody stays until it has ended, as sweepers that learn have to.
    """
    hydra = composed.hydra
    names = [str(part._target_).rpartition(".")[2] for part in (hydra.sweeper, hydra.launcher)]
    endless = [one.line for one in sweep.swept if not one.counted]
    if endless and names[0] == "BasicSweeper":
        raise UsageError(
            f"{endless[0]} has no end of values - allowed: a,b,c or range(1,4) - do: add "
            "hydra/sweeper=optuna, which tries some of them"
        )
    direction = hydra.sweeper.get("direction")
    if direction is not None and getattr(direction, "name", direction) != "maximize":
        raise UsageError(
            f"hydra.sweeper.direction={getattr(direction, 'name', direction)} - allowed: maximize, "
            "scores are better when they are higher - do: hydra.sweeper.direction=maximize"
        )
    plain = names == ["BasicSweeper", "BasicLauncher"]
    if not plain and not wait:
        raise UsageError(
            f"dlp submit with {' and '.join(names)} - allowed: BasicSweeper and BasicLauncher - "
            "do: dlp train -m launcher=slurm ..., which stays to the end"
        )
    return plain


def root(composed: Any) -> Path:
    """Return the folder of a sweep."""
    if composed.run.dir:
        raise UsageError(
            f"run.dir={composed.run.dir} in a sweep - allowed: a folder for each job "
            "- do: hydra.sweep.dir=FOLDER"
        )
    return Path(str(composed.hydra.sweep.dir))


def baseline(composed: Any) -> Any:
    """Give rule alone, the baseline of a sweep over rules, its one worker."""
    if composed.rule.name == "alone":
        composed.workers = composed.slurm.nodes = 1
    return composed


def conclude(folder: Path) -> list[summary.Row]:
    """Print the table of a sweep and draw its picture; return its jobs."""
    from launch.sweep import figure

    rows = summary.collect(folder)
    if rows:
        summary.show(folder, rows)
        print(f"table    {summary.write(folder, rows)}")
        if picture := figure.draw(folder, rows):
            print(f"picture  {picture}")
    return rows


def raise_first(rows: Sequence[summary.Row]) -> None:
    """Raise the error of the first job that failed."""
    for row in rows:
        if row.score is None and row.note != summary.NONE:
            raise failure(row.exit, f"{row.note} [job {row.number + 1}, {row.folder}]")


def main(argv: Sequence[str]) -> int:
    """Run ``dlp sweep FOLDER``: sum up a sweep that has run, or still runs, anywhere."""
    parser = Options(prog="dlp sweep", add_help=False, allow_abbrev=False)
    parser.add_argument("folder")
    folder = Path(parser.parse_args(list(argv)).folder)
    if not conclude(folder):
        raise UsageError(
            f"{folder} is not the folder of a sweep: it has no numbered folders of jobs - allowed: "
            "what dlp train -m or dlp submit -m named - do: ls -d multirun/*/*"
        )
    return 0


# -- as one array of Slurm ---------------------------------------------------------------------


def array(jobs: Sequence[tuple[Sequence[str], dict[str, Any]]], folder: Path, wait: bool) -> None:
    """Run a sweep's jobs, each with its overrides and settings, as one array of Slurm.

    Raises:
        PlatformError: the error of the first job that failed, after the table.
    """
    from omegaconf import OmegaConf

    from launch.slurm import submission

    submitted = submission.enqueue([config for _, config in jobs], folder)
    for number, (words, _) in enumerate(jobs):
        path = folder / str(number) / summary.OVERRIDES
        path.parent.mkdir(exist_ok=True)
        OmegaConf.save(OmegaConf.create(list(words)), path)
    submitted.announce()
    if not wait:
        print(f"table    dlp sweep {folder}")
        return
    try:
        ended = submitted.follow(submitted.count)
    finally:
        rows = conclude(folder)
    for row in [row for row in rows if row.score is None]:
        error = "" if row.note == summary.NONE else row.note
        name, told = f"job {submitted.number}_{row.number}", ended.get(str(row.number), {})
        raise submission.failure(name, row.folder, told, error)
