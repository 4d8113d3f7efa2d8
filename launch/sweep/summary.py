"""What a sweep's folder holds: a score for each job, mean and spread over seeds."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.job import ERROR, RESULT

OVERRIDES, FAILED = Path(".hydra") / "overrides.yaml", "error.json"
CSV, PICTURE = "sweep.csv", "sweep.png"
NONE = "no result"
"""What stands for a score where nothing says why there is none."""


@dataclass(frozen=True)
class Row:
    """One job of a sweep."""

    number: int
    folder: Path
    settings: dict[str, str]
    """What was typed, by key."""
    result: dict[str, Any] = field(default_factory=dict)
    """Its ``result.json``; empty when it has none."""
    note: str = ""
    """Why it has none."""
    exit: int = 1
    """The exit code of one that failed."""

    @property
    def score(self) -> float | None:
        """Return its primary score."""
        return float(self.result["score"]) if self.result else None


@dataclass(frozen=True)
class Group:
    """The jobs of a sweep that differ in nothing but their seed."""

    words: str
    rows: Sequence[Row]

    @property
    def scores(self) -> list[float]:
        """Return the scores of the jobs that have one."""
        return [row.score for row in self.rows if row.score is not None]

    @property
    def mean(self) -> float:
        """Return the mean score, nan without any."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def spread(self) -> float:
        """Return the standard deviation over seeds (of a sample), nan below two scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan

    @property
    def primary(self) -> str:
        """Return the name of the score."""
        return next((str(row.result["primary"]) for row in self.rows if row.result), "score")

    @property
    def seconds(self) -> float:
        """Return the mean time of a job."""
        times = [float(row.result["seconds"]) for row in self.rows if row.result]
        return statistics.fmean(times) if times else math.nan


def collect(root: Path) -> list[Row]:
    """Return the jobs whose folders are in a sweep's, wherever they ran, by number."""
    found = [path for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
    return [_row(path) for path in sorted(found, key=lambda path: int(path.name))]


def _row(folder: Path) -> Row:
    from omegaconf import OmegaConf

    path = folder / OVERRIDES
    typed = [str(word) for word in OmegaConf.load(path)] if path.exists() else []
    settings = {key: value for key, _, value in (word.partition("=") for word in typed)}
    try:
        result = json.loads((folder / RESULT).read_text())
        float(result["score"])
    except (OSError, ValueError, KeyError, TypeError):
        note, code = _last_words(folder)
        return Row(int(folder.name), folder, settings, note=note, exit=code)
    return Row(int(folder.name), folder, settings, result)


def _last_words(folder: Path) -> tuple[str, int]:
    """Return the error that a job ended with, and its exit code as far as it is known."""
    try:
        told = json.loads((folder / FAILED).read_text())
        return str(told["error"]), int(told["exit"])
    except (OSError, ValueError, KeyError):
        pass
    log = folder / "slurm.log"
    said = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.removeprefix(ERROR) for line in said if line.startswith(ERROR)]
    return errors[-1] if errors else NONE, 1


def varying(rows: Sequence[Row]) -> list[str]:
    """Return the settings that are not the same in all jobs, in the order they were typed."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return [key for key in keys if len({row.settings.get(key) for row in rows}) > 1]


def words(row: Row, keys: Iterable[str]) -> str:
    """Return some of a job's settings as they were typed."""
    return " ".join(f"{key}={row.settings[key]}" for key in keys if key in row.settings)


def groups(rows: Sequence[Row]) -> list[Group]:
    """Return the jobs by their settings other than the seed; the best mean of a task first."""
    keys = [key for key in varying(rows) if key != "seed"]
    by_words: dict[str, list[Row]] = {}
    for row in rows:
        by_words.setdefault(words(row, keys), []).append(row)
    found = [Group(name or "all", members) for name, members in by_words.items()]

    def order(group: Group) -> tuple[str, bool, float]:
        mean = group.mean
        return group.rows[0].settings.get("task", ""), math.isnan(mean), -mean

    return sorted(found, key=order)


def show(root: Path, rows: Sequence[Row]) -> None:
    """Print a sweep's jobs and, where there are several seeds, their mean and spread."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    keys = varying(rows) or list(rows[0].settings)
    fixed = words(rows[0], [key for key in rows[0].settings if key not in keys])
    title = Text(f"sweep {root}\n{fixed}")
    table = Table("job", "settings", "score", "seconds", "folder", title=title)
    for row in rows:
        score = row.note.partition(" - ")[0] if row.score is None else f"{row.score:.4f}"
        time = f"{row.result['seconds']:.1f}" if row.result else ""
        one = (str(row.number + 1), words(row, keys), score, time, str(row.folder))
        table.add_row(*map(Text, one))
    console.print(table)
    found = [group for group in groups(rows) if group.scores]
    if all(len(group.rows) == 1 for group in found):
        return
    heads = ("settings", "score", "seeds", "mean", "spread", "worst", "best", "seconds")
    table = Table(*heads, title="over seeds (spread: standard deviation)")
    for group in found:
        cells = (group.words, group.primary, str(len(group.scores)), *figures(group))
        table.add_row(*map(Text, cells))
    console.print(table)


def figures(group: Group) -> list[str]:
    """Return mean, spread, worst, best and seconds of a group that has scores, as text."""
    spread = f"{group.spread:.4f}" if len(group.scores) > 1 else "-"
    worst, best = min(group.scores), max(group.scores)
    return [f"{group.mean:.4f}", spread, f"{worst:.4f}", f"{best:.4f}", f"{group.seconds:.1f}"]


def write(root: Path, rows: Sequence[Row]) -> Path:
    """Write one line for each job to ``sweep.csv``."""
    keys, path = varying(rows), root / CSV
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["job", *keys, "primary", "score", "seconds", "note"])
        for row in rows:
            told = [row.result.get(name, "") for name in ("primary", "score", "seconds")]
            typed = [row.settings.get(key, "") for key in keys]
            out.writerow([row.number + 1, *typed, *told, row.note])
    return path
