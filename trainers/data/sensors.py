"""Recordings of body sensors: UCI-HAR windows, PAMAP2 protocols, and CSV files with a header.

All become windows of the eleven channels of ``trainers/synth/imu.py`` at 50 Hz; what a set has
not measured is NaN.

Shape legend: N windows, C channels, T time, S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlplatform.errors import UsageError, closest
from trainers.data.parts import deal
from trainers.synth.imu import ACTIVITIES, CHANNELS, Recording, record

WINDOW, STEP = 128, 64
"""Samples of a window (2.56 s) and from one to the next."""
ALLOWED = (
    "the folder of UCI-HAR (train/Inertial Signals, …), of PAMAP2 (subject101.dat, …), or "
    "CSV files at 50 Hz with a header of channels and activity"
)
UCI = ("walk", "stairs-up", "stairs-down", "sit", "stand", "lie")
"""Activities 1 to 6 of UCI-HAR."""
PAMAP = {1: "lie", 2: "sit", 3: "stand", 4: "walk", 5: "run", 12: "stairs-up", 13: "stairs-down"}
PAMAP_COLUMNS, PAMAP_CHEST, GRAVITY = 54, (21, 27, 30), 9.80665
"""Columns of a line; where acceleration, turn rate and field of the chest start."""
NONE = -1


@dataclass(frozen=True)
class Windows:
    """Windows x_NCT, the activity of each and whose they are."""

    x_NCT: Tensor
    activity_N: Tensor
    subjects: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.activity_N)


def cut(recordings: Iterable[Recording]) -> Windows:
    """Return every window that lies within one activity, and within one piece."""
    found, labels, subjects = [], [], []
    for one in recordings:
        edges = np.flatnonzero(np.diff(one.activity_S)) + 1
        edges = np.unique([0, *edges, *one.pieces, len(one.activity_S)])
        for first, last in pairwise(edges.tolist()):
            if one.activity_S[first] != NONE:
                starts = range(first, last - WINDOW + 1, STEP)
                found += [one.samples_SC[at : at + WINDOW].T for at in starts]
                labels += [one.activity_S[first]] * len(starts)
                subjects += [one.subject] * len(starts)
    if not found:
        raise UsageError(
            f"no activity lasts {WINDOW} samples - allowed: one window (2.56 s) or more at 50 Hz "
            "- record longer"
        )
    return Windows(torch.from_numpy(np.stack(found)), torch.tensor(labels), tuple(subjects))


@lru_cache(maxsize=6)
def simulate(seed: int, subjects: range, rounds: int) -> Windows:
    """Return the windows of simulated subjects who do each activity ``rounds`` times."""
    return cut(record(seed, number, rounds) for number in subjects)


@lru_cache(maxsize=2)
def load_sensors(folder: str) -> dict[str, Windows]:
    """Return the parts ``train``, ``val`` and ``test`` of a folder; no subject is in two.

    Raises UsageError for a folder that is none of the three formats, naming the file.
    """
    root = Path(folder)
    if (root / "train" / "Inertial Signals").is_dir():
        return _uci(root)
    protocols = sorted(root.glob("subject*.dat")) or sorted(root.glob("Protocol/subject*.dat"))
    if protocols:
        recordings = [_pamap(path) for path in protocols]
    else:
        recordings = [read_csv(path) for path in sorted(root.glob("*.csv"))]
    if not recordings:
        raise UsageError(f"task.data={folder} has no recordings - allowed: {ALLOWED}")
    part = deal((one.subject for one in recordings), folder)
    return {
        name: cut(one for one in recordings if part[one.subject] == name)
        for name in ("train", "val", "test")
    }


def joined(windows: Windows, count: int) -> Recording:
    """Return some windows one after another, as a recording; every other one, for they overlap."""
    some = slice(0, 2 * count, 2)
    samples_SC = windows.x_NCT[some].transpose(1, 2).flatten(0, 1).numpy()
    activity_S = windows.activity_N[some].repeat_interleave(WINDOW).numpy()
    return Recording(samples_SC, activity_S, windows.subjects[0])


def read_csv(path: Path) -> Recording:
    """Return a CSV file: channels in any order, perhaps ``activity`` and ``subject``.

    A channel that is not there is NaN. Raises UsageError, naming the line.
    """
    lines = _lines(path)
    names = [name.strip() for name in lines[0].split(",")]
    known = (*CHANNELS, "activity", "subject")
    for name in names:
        if names.count(name) > 1:
            raise _broken(path, f"has the column {name!r} twice", "each once")
        if name not in known:
            raise _broken(path, f"has a column {name!r}{closest(name, known)}", ", ".join(known))
    if not set(names) & set(CHANNELS):
        raise _broken(path, "has no channel", ", ".join(CHANNELS))
    samples_SC = np.full((len(lines) - 1, len(CHANNELS)), np.nan, np.float32)
    activity_S = np.full(len(lines) - 1, NONE)
    subject = path.stem
    for row, line in enumerate(lines[1:]):
        cells = dict(zip(names, (cell.strip() for cell in line.split(",")), strict=False))
        if len(cells) != len(names) or line.count(",") + 1 != len(names):
            raise _broken(
                path, f"line {row + 2}: {line!r} has not {len(names)} values", "a full row"
            )
        samples_SC[row] = [_number(path, row, cells.get(name, "nan")) for name in CHANNELS]
        activity_S[row] = _activity(path, row, cells.get("activity", ""))
        subject = cells.get("subject", subject)
    return Recording(samples_SC, activity_S, subject)


def _number(path: Path, row: int, cell: str) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        raise _broken(
            path, f"line {row + 2}: {cell!r} is no number", "numbers, or nothing"
        ) from None


def _activity(path: Path, row: int, name: str) -> int:
    if name and name not in ACTIVITIES:
        what = f"line {row + 2}: activity {name!r} is not known{closest(name, ACTIVITIES)}"
        raise _broken(path, what, f"{', '.join(ACTIVITIES)}, or nothing")
    return ACTIVITIES.index(name) if name else NONE


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, f"cannot be read ({error})", "a CSV file") from error
    if len(lines) < 2:
        raise _broken(path, f"has {len(lines)} lines", "a header and samples")
    return lines


def _table(path: Path, columns: int) -> NDArray[np.float32]:
    try:
        values = np.loadtxt(path, dtype=np.float32, ndmin=2)
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read ({error})", "lines of numbers") from error
    if values.shape[1] != columns or len(values) == 0:
        what = f"has {len(values)} lines of {values.shape[1]} numbers"
        raise _broken(path, what, f"lines of {columns}")
    return values


def _uci(root: Path) -> dict[str, Windows]:
    learn, test = _uci_part(root, "train"), _uci_part(root, "test")
    # The set has its own test subjects: those who train are split once more.
    held = sorted(set(learn.subjects))[::5]
    chosen = torch.tensor([subject in held for subject in learn.subjects])
    return {"train": _take(learn, ~chosen), "val": _take(learn, chosen), "test": test}


def _uci_part(root: Path, part: str) -> Windows:
    folder = root / part
    label_path = folder / f"y_{part}.txt"
    labels = _table(label_path, 1)[:, 0].astype(int)
    if not set(labels) <= set(range(1, 7)):
        raise _broken(label_path, f"has the label {max(labels)}", "1 to 6")
    people = _table(folder / f"subject_{part}.txt", 1)[:, 0].astype(int)
    x_NCT = np.full((len(labels), len(CHANNELS), WINDOW), np.nan, np.float32)
    for place, name in enumerate(f"{kind}_{axis}" for kind in ("total_acc", "body_gyro")
                                 for axis in "xyz"):  # fmt: skip
        path = folder / "Inertial Signals" / f"{name}_{part}.txt"
        signal_NT = _table(path, WINDOW)
        if len(signal_NT) != len(labels):
            raise _broken(path, f"has {len(signal_NT)} windows", f"{len(labels)}, one a label")
        x_NCT[:, place] = signal_NT
    if len(people) != len(labels):
        raise _broken(label_path, f"has {len(labels)} labels", f"{len(people)}, one a subject")
    activity_N = torch.tensor([ACTIVITIES.index(UCI[label - 1]) for label in labels])
    return Windows(torch.from_numpy(x_NCT), activity_N, tuple(f"{n:03}" for n in people))


def _pamap(path: Path) -> Recording:
    """Return a protocol: the sensors on the chest, every other of its 100 samples a second."""
    table_SC = _table(path, PAMAP_COLUMNS)[::2]
    samples_SC = np.full((len(table_SC), len(CHANNELS)), np.nan, np.float32)
    for place, column in enumerate(PAMAP_CHEST):
        samples_SC[:, 3 * place : 3 * place + 3] = table_SC[:, column : column + 3]
    samples_SC[:, :3] /= GRAVITY
    samples_SC[:, 6:9] /= 50.0  # microtesla, about what the earth's field has in Europe
    names = (PAMAP.get(int(code)) for code in table_SC[:, 1])
    activity_S = np.array([ACTIVITIES.index(name) if name else NONE for name in names])
    return Recording(samples_SC, activity_S, path.stem)


def _take(windows: Windows, chosen: Tensor) -> Windows:
    subjects: Sequence[str] = [s for s, yes in zip(windows.subjects, chosen, strict=True) if yes]
    return Windows(windows.x_NCT[chosen], windows.activity_N[chosen], tuple(subjects))


def _broken(path: Path, what: str, allowed: str) -> UsageError:
    return UsageError(f"{path} {what} - allowed: {allowed} - correct the file")
