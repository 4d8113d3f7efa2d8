"""A short run of ``dlp train``, and what it and the GPU say of themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dlplatform.world import with_parent

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = re.compile(r": ([\d,]+) parameters")
LOOKS = 5
"""Minibatches whose reading is timed without training."""
LOOK_S = 0.5


@dataclass(frozen=True)
class Wish:
    """How all recipes are run: see the options of the command."""

    device: str
    precision: str
    minibatches: int
    timeout: float
    """Seconds for starting and training."""
    scores: float
    """Seconds for the scores and the picture at the end."""


def asked(device: str, what: str) -> str:
    """Return what nvidia-smi answers about a GPU; empty where there is none or none is used."""
    if device == "cpu" or not shutil.which("nvidia-smi"):
        return ""
    line = ["nvidia-smi", "-i", device.partition(":")[2] or "0", f"--query-gpu={what}"]
    line += ["--format=csv,noheader,nounits"]
    return subprocess.run(line, capture_output=True, text=True).stdout.strip()


class Memory:
    """Watches how much memory of a GPU is in use, twice a second; where there is none, nothing."""

    def __init__(self, device: str) -> None:
        self.device, self._over = device, threading.Event()
        self._seen = [self._now()]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._seen[0] is not None:
            self._thread.start()

    def _now(self) -> int | None:
        said = asked(self.device, "memory.used")
        return int(said) if said.isdigit() else None

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self._seen.append(self._now())

    def most(self) -> int | None:
        """End watching; return how many MiB more were in use than at the beginning, at most."""
        if self._seen[0] is None:
            return None
        self._over.set()
        self._thread.join()
        return max(seen for seen in self._seen if seen is not None) - self._seen[0]


def measured(name: str, words: Sequence[str], wish: Wish, folder: Path) -> dict[str, Any]:
    """Train a recipe in a new folder and return its row.

    ``error`` is the last line that a run said which failed, or that it took too long; ``cut`` is
    said of one that trained to its end, but took too long to score what it trained. What was
    measured by then is in the row all the same.
    """
    line = [sys.executable, "-m", "dlplatform.cli", "train", f"experiment={name}", *words]
    line += [f"run.minibatches={wish.minibatches}", f"run.eval_every={wish.minibatches}"]
    line += [f"run.device={wish.device}", f"run.precision={wish.precision}", "workers=1"]
    line += [f"run.dir={folder}", "run.progress=plain", "hydra.output_subdir=null"]
    memory, begin = Memory(wish.device), time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        error, cut = _ended(line, wish, folder, log)
        log.seek(0)
        said = log.read()
    if not error and not cut and not (folder / "result.json").exists():
        error = (said.strip().splitlines() or ["it said nothing"])[-1]
    return {
        "recipe": name, "minibatches": wish.minibatches, "precision": wish.precision,
        "seconds": round(time.monotonic() - begin, 1), "memory_mib": memory.most(),
        "error": error, "cut": cut, "values": _values(said),
        **figures(folder, wish.minibatches),
    }  # fmt: skip


def _ended(line: Sequence[str], wish: Wish, folder: Path, log: IO[str]) -> tuple[str, str]:
    """Run a command to its end, or end it; return why it was, in training or when scoring."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_given()])}
    process = subprocess.Popen(
        line, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        preexec_fn=with_parent(signal.SIGKILL),
    )  # fmt: skip
    begin = time.monotonic()
    trained = 0.0
    try:
        while process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if not trained and _ticks(folder / "metrics.jsonl")[1]:
                trained = now
            if trained and now - trained > wish.scores:
                return "", f"its scores were given {wish.scores:g} s"
            if not trained and now - begin > wish.timeout:
                return f"more than {wish.timeout:g} s", ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "", ""


def _given() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _values(said: str) -> int | None:
    found = PARAMETERS.search(said)
    return int(found[1].replace(",", "")) if found else None


def figures(folder: Path, minibatches: int) -> dict[str, Any]:
    """Return what a run wrote of its speed and its loss; a tick of half a second a line.

    The first tick has the warm-up in it. A run that was over before the second one has but the
    mean of all its minibatches, ``how`` says so.
    """
    config, result = (_read(folder / name) for name in ("config.json", "result.json"))
    batch = config.get("task", {}).get("batch_size")
    ticks, scored = _ticks(folder / "metrics.jsonl")
    later = ticks[1:]
    step_s: float | None = None
    how, exchange = "", None
    if later:
        step_s = statistics.median(tick["time/step_s"] for tick in later)
        exchange = statistics.median(t["time/exchange_s"] / t["time/step_s"] for t in later)
    elif result:
        step_s, how = result["seconds"] / minibatches, "mean with the warm-up"
    losses = [tick["train/loss"] for tick in ticks]
    return {
        "batch": batch, "step_s": step_s, "ticks": len(later), "how": how,
        "samples_per_s": batch / step_s if batch and step_s else None,
        "exchange_share": exchange, "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None, "trained": scored or bool(result),
        "score": result.get("score"), "primary": result.get("primary"),
    }  # fmt: skip


def _ticks(path: Path) -> tuple[list[dict[str, float]], bool]:
    """Return the lines about training, and whether scores follow: then all is trained."""
    if not path.exists():
        return [], False
    lines = path.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    ticks = [row for row in rows if "time/step_s" in row]
    return ticks, any(key.startswith("val/") for row in rows for key in row)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def reading_s(folder: Path, minibatches: int) -> float | None:
    """Return the seconds in which a run reads a minibatch, before or while it trains.

    Its task is made once more here, and asked for some minibatches on a quiet machine; the first
    does not count.
    """
    import torch

    from dlplatform.checkpoint import make_task

    config = _read(folder / "config.json")
    if not config:
        return None
    torch.set_num_threads(config["run"]["threads"] or len(os.sched_getaffinity(0)))
    task = make_task({**config["task"], "seed": int(config["seed"])}, minibatches)
    seconds = []
    for number in range(0, minibatches, max(1, minibatches // LOOKS)):
        begin = time.perf_counter()
        task.batch("train", number)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:] or seconds)
