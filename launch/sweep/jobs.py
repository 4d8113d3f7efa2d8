"""Run the jobs of a sweep, one by one or as one array of Slurm, and sum up what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlplatform.errors import PlatformError, UsageError
from dlplatform.memorybox.options import Options
from launch.job import ERROR
from launch.sweep import summary


@dataclass
class Sweeping:
    """A sweep under way in Hydra's hands: how each of its jobs ended."""

    one: Callable[[Any], float]
    """Runs one composed job."""
    total: int
    notes: dict[str, str] = field(default_factory=dict)

    def job(self, composed: Any) -> float:
        """Run one job of the sweep in the launcher, after a line that says which it is."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        number, of = int(hydra.job.num), f" of {self.total}" if self.total else ""
        print(f"dlp: job {number + 1}{of}: {' '.join(hydra.overrides.task)}", flush=True)
        try:
            return self.one(baseline(composed))
        except PlatformError as error:
            self.notes[str(number)] = str(error)
            with suppress(OSError):  # the job may run elsewhere; its folder may be gone
                (Path(hydra.runtime.output_dir) / summary.FAILED).write_text(f"{ERROR}{error}\n")
            raise


def baseline(composed: Any) -> Any:
    """Give rule alone, the baseline of a sweep over rules, its one worker."""
    if composed.rule.name == "alone":
        composed.workers = 1
    return composed


def conclude(root: Path, notes: Mapping[str, str] = {}) -> list[summary.Row]:
    """Print the table of a sweep and draw its picture; return its jobs."""
    from launch.sweep import figure

    rows = summary.collect(root, notes)
    if rows:
        summary.show(root, rows)
        print(f"table    {summary.write(root, rows)}")
        if picture := figure.draw(root, rows):
            print(f"picture  {picture}")
    return rows


def main(argv: Sequence[str]) -> int:
    """Run ``dlp sweep FOLDER``: sum up a sweep that has run, or still runs, anywhere."""
    parser = Options(prog="dlp sweep", add_help=False, allow_abbrev=False)
    parser.add_argument("folder")
    root = Path(parser.parse_args(list(argv)).folder)
    if not conclude(root):
        raise UsageError(
            f"{root} is not the folder of a sweep: it has no numbered folders of jobs - allowed: "
            "what dlp train -m or dlp submit -m named - do: ls -d multirun/*/*"
        )
    return 0


# -- as one array of Slurm ---------------------------------------------------------------------


def array(jobs: Sequence[tuple[Sequence[str], dict[str, Any]]], root: Path, wait: bool) -> None:
    """Run a sweep's jobs, each with its overrides and settings, as one array of Slurm.

    Raises:
        PlatformError: the error of the first job that failed, after the table.
    """
    from omegaconf import OmegaConf

    from launch.slurm import submission

    submitted = submission.enqueue([config for _, config in jobs], root)
    for number, (words, _) in enumerate(jobs):
        path = root / str(number) / summary.OVERRIDES
        path.parent.mkdir(exist_ok=True)
        OmegaConf.save(OmegaConf.create(list(words)), path)
    submitted.announce()
    if not wait:
        print(f"table    dlp sweep {root}")
        return
    ended = submitted.follow(submitted.count)
    for row in [row for row in conclude(root) if row.score is None]:
        error = "" if row.note == summary.NONE else row.note
        name, told = f"job {submitted.number}_{row.number}", ended.get(str(row.number), {})
        raise submission.failure(name, row.folder, told, error)
