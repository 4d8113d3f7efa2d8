"""What a sweep's folder holds: a score for each job, mean and spread over seeds."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.job import ERROR, RESULT

OVERRIDES, FAILED = Path(".hydra") / "overrides.yaml", "error.txt"
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
        return statistics.fmean(self.scores) if self.scores else float("nan")

    @property
    def spread(self) -> float:
        """Return the standard deviation over seeds (of a sample), nan below two scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else float("nan")

    @property
    def primary(self) -> str:
        """Return the name of the score."""
        return next((str(row.result["primary"]) for row in self.rows if row.result), "score")

    @property
    def seconds(self) -> float:
        """Return the mean time of a job."""
        times = [float(row.result["seconds"]) for row in self.rows if row.result]
        return statistics.fmean(times) if times else float("nan")


def collect(root: Path, notes: Mapping[str, str] = {}) -> list[Row]:
    """Return the jobs whose folders are in a sweep's, wherever they ran, by number."""
    found = [path for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
    return [_row(path, notes) for path in sorted(found, key=lambda path: int(path.name))]


def _row(folder: Path, notes: Mapping[str, str]) -> Row:
    from omegaconf import OmegaConf

    path = folder / OVERRIDES
    typed = [str(word) for word in OmegaConf.load(path)] if path.exists() else []
    settings = {key: value for key, _, value in (word.partition("=") for word in typed)}
    try:
        result = json.loads((folder / RESULT).read_text())
        float(result["score"])
    except (OSError, ValueError, KeyError, TypeError):
        note = notes.get(folder.name) or _last_words(folder) or NONE
        return Row(int(folder.name), folder, settings, note=note)
    return Row(int(folder.name), folder, settings, result)


def _last_words(folder: Path) -> str:
    """Return the error that a job ended with."""
    for name in (FAILED, "slurm.log"):
        if (folder / name).exists():
            lines = (folder / name).read_text(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith(ERROR)]
            if errors:
                return errors[-1].removeprefix(ERROR)
    return ""


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
        return group.rows[0].settings.get("task", ""), mean != mean, -mean

    return sorted(found, key=order)


def show(root: Path, rows: Sequence[Row]) -> None:
    """Print a sweep's jobs and, where there are several seeds, their mean and spread."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    keys = varying(rows) or list(rows[0].settings)
    fixed = words(rows[0], [key for key in rows[0].settings if key not in keys])
    table = Table("job", "settings", "score", "seconds", "folder", title=f"sweep {root}\n{fixed}")
    for row in rows:
        score = row.note if row.score is None else f"{row.score:.4f}"
        time = f"{row.result['seconds']:.1f}" if row.result else ""
        table.add_row(str(row.number + 1), words(row, keys), score, time, str(row.folder))
    console.print(table)
    found = groups(rows)
    if len(found) == len(rows):
        return
    heads = ("settings", "score", "seeds", "mean", "spread", "worst", "best", "seconds")
    table = Table(*heads, title="over seeds (spread: standard deviation)")
    for group in found:
        table.add_row(group.words, group.primary, str(len(group.scores)), *figures(group))
    console.print(table)


def figures(group: Group) -> list[str]:
    """Return a group's mean, spread, worst, best and seconds as text."""
    scores = group.scores or [float("nan")]
    numbers = (group.mean, group.spread, min(scores), max(scores))
    texts = ["-" if number != number else f"{number:.4f}" for number in numbers]
    return [*texts, "-" if group.seconds != group.seconds else f"{group.seconds:.1f}"]


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
