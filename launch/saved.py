"""The verbs ``eval``, ``predict`` and ``export``: use what a run saved.

``run=FOLDER`` names it; ``task=NAME`` stands for the newest one of that task here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlplatform.config import CHECKS
from dlplatform.errors import UsageError, closest

if TYPE_CHECKING:
    import torch

    from dlplatform.task import Models, Task

SPLITS = ("train", "val", "test")
WHICH = ("best", "latest")
CHOICE = {"run": "", "task": "", "which": "latest"}
SAVED = {**CHOICE, "device": "cpu"}
HOMES = ("outputs", "multirun")
"""Folders here that hold runs, unless run.dir said otherwise."""
CELL = 160
"""Characters of an answer in a table."""


def evaluate(argv: Sequence[str]) -> int:
    """Run ``dlp eval run=FOLDER|task=NAME [split=test] [which=latest] [device=cpu] [--json]``."""
    given, files, as_json = _arguments(argv, {**SAVED, "split": "test"})
    if files:
        raise UsageError(
            f"dlp eval {files[0]} - allowed: run=, split=, which=, device= - do: run={files[0]}"
        )
    _one_of("split", given["split"], SPLITS)
    task, models, where = _load(given)
    import torch

    from dlplatform.device import moved

    with torch.inference_mode():
        scores = task.score(models, (moved(one, where) for one in task.batches(given["split"])))
    if as_json:
        print(json.dumps({"run": given["run"], "split": given["split"], "scores": scores}))
    else:
        _table([{"score": name, given["split"]: f"{v:.4f}"} for name, v in scores.items()])
    return 0


def predict(argv: Sequence[str]) -> int:
    """Run ``dlp predict run=FOLDER|task=NAME FILE... [which=latest] [device=cpu] [--json]``.

    A folder among the files stands for the pictures in it.
    """
    given, files, as_json = _arguments(argv, SAVED)
    if not files:
        raise UsageError("dlp predict without a file - allowed: one or more - do: name a FILE")
    paths = [path for file in files for path in _files_of(Path(file))]
    task, models, _ = _load(given)
    import torch

    with torch.inference_mode():
        answers = [{"file": str(path), **task.predict(models, path)} for path in paths]
    if as_json:
        print(json.dumps(answers))
    else:
        _table([{key: _short(_show(value)) for key, value in one.items()} for one in answers])
    return 0


def export(argv: Sequence[str]) -> int:
    """Run ``dlp export run=FOLDER|task=NAME FILE.onnx [which=latest] [--json]``."""
    given, files, as_json = _arguments(argv, CHOICE)
    if len(files) != 1 or Path(files[0]).suffix != ".onnx" or not Path(files[0]).parent.is_dir():
        raise UsageError(
            f"dlp export {' '.join(files)} - allowed: one FILE.onnx in a folder that exists - do: "
            "name it"
        )
    task, models, _ = _load({**given, "device": "cpu"})
    from trainers.blocks.exported import write

    written = task.export(models)
    write(written, Path(files[0]))
    told = {
        "file": files[0],
        "inputs": {name: list(value.shape) for name, value in written.inputs.items()},
        "outputs": list(written.outputs),
    }
    if as_json:
        print(json.dumps(told))
    else:
        _table([{name: _show(value) for name, value in told.items()}])
    return 0


def _files_of(path: Path) -> list[Path]:
    """Return the file, or the pictures of the folder."""
    if path.is_dir():
        from trainers.pictures.files import pictures_of

        return pictures_of(path)
    if not path.is_file():
        raise UsageError(
            f"{path} is not a file - allowed: existing files, folders of pictures - do: check the "
            "path"
        )
    return [path]


def _arguments(
    argv: Sequence[str], defaults: dict[str, str]
) -> tuple[dict[str, str], list[str], bool]:
    """Split ``key=value`` words, files and ``--json``."""
    given, files, as_json = dict(defaults), [], False
    for word in argv:
        key, equals, value = word.partition("=")
        if word == "--json":
            as_json = True
        elif equals and key in defaults:
            given[key] = value
        elif word.startswith("-") or (equals and not Path(word).exists()):
            allowed = ", ".join(f"{name}=" for name in defaults)
            raise UsageError(
                f"{word} is not a setting{closest(key, defaults)}. Allowed: {allowed}, --json"
            )
        else:
            files.append(word)
    return given, files, as_json


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{key}={value} cannot work - allowed: {', '.join(allowed)} - do: choose")


def _load(given: dict[str, str]) -> tuple[Task, Models, torch.device]:
    """Return the task, its networks on the device that is asked for, and the device."""
    wanted = given["device"]
    if not CHECKS["run.device"].passes(wanted):
        raise UsageError(
            f"device={wanted} cannot work - allowed: {CHECKS['run.device'].allowed} - do: choose"
        )
    _one_of("which", given["which"], WHICH)
    if given["task"] and given["run"]:
        raise UsageError(
            f"run={given['run']} task={given['task']} - allowed: one of them - do: leave task= out"
        )
    if given["task"]:
        given["run"] = str(_newest(given["task"]))
        print(f"run={given['run']}", file=sys.stderr)
    folder = given["run"]
    if not folder or not Path(folder).is_dir():
        raise UsageError(
            f"run={folder} is not a folder - allowed: the folder of a run, or task=NAME for the "
            "newest one of a task - do: ls outputs/*/*"
        )
    from dlplatform.checkpoint import load_models
    from dlplatform.device import choose
    from dlplatform.world import World

    where = choose(wanted, World(), setting="device")
    task, models = load_models(folder, given["which"])
    return task, {name: model.to(where) for name, model in models.items()}, where


def _newest(name: str) -> Path:
    """Return the run of a task, below this folder, whose last checkpoint is the newest one."""
    from dlplatform.task import find_task
    from launch.job import CHECKPOINT

    find_task(name)
    states = [state for home in HOMES for state in Path(home).rglob(CHECKPOINT)]
    found = [state for state in states if _task_of(state) == name]
    if not found:
        raise UsageError(
            f"task={name} has no run in {' or '.join(HOMES)} - allowed: a task that was trained "
            f"here - do: dlp train task={name}, or run=FOLDER"
        )
    return max(found, key=lambda state: state.stat().st_mtime).parents[2]


def _task_of(state: Path) -> str:
    """Return whose checkpoint it is; none, when it cannot be read."""
    try:
        return str(json.loads(state.read_text())["settings"]["task"]["name"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _short(text: str) -> str:
    """Return the begin of what is too long for a table, such as the states in a film."""
    if len(text) <= CELL:
        return text
    return f"{text[:CELL].rpartition(' ')[0]} ... (--json: all of it)"


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return " ".join(_show(one) for one in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={_show(one)}" for key, one in value.items())
    return str(value)


def _table(rows: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names)
    for row in rows:
        table.add_row(*(row.get(name, "") for name in names))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
