"""What a run tells people: banner, figures, final summary and picture."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlplatform.config import ClusterConfig, PipelineConfig, RunConfig
from dlplatform.memorybox.memory import megabytes
from dlplatform.memorybox.segment import split
from dlplatform.memorybox.session import LEFT
from dlplatform.progress import describe
from dlplatform.rules.rule import find_rule

if TYPE_CHECKING:
    from PIL import Image

    from dlplatform.job import Job
    from dlplatform.trainer import Trainer

TICK_S = 0.5


def banner(trainer: Trainer) -> str:
    """Return the lines that open a run: what trains where, and how much moves."""
    settings, job = trainer.settings, trainer.job
    trained = {p for ps in trainer.task.groups(trainer.models).values() for p in ps}
    parameters = sum(p.numel() for p in trained if p.requires_grad)
    rule = settings["rule"]
    where = " ".join(transport.uri for transport in job.cluster.transports)
    again = f" from {trainer.start}" if trainer.start else ""
    stages, pipeline = trainer.cut.stages, trainer.pipeline
    pipelines = (
        f"{job.size // stages} pipeline(s) x {stages} stages, {pipeline.schedule}, "
        f"{pipeline.microbatches} micro-batch(es)"
    )
    gpu = " on GPU" if trainer.device.type == "cuda" else ""
    lines = (
        f"{settings['task']['name']}: {parameters:,} parameters, {trainer.total} minibatches"
        f"{again}, seed {trainer.seed}",
        f"rule {rule['name']} {describe(rule)}".rstrip(),
        f"{job.size} worker(s){gpu}, {len(job.cluster.transports)} box(es): {where}",
        *([pipelines] if stages > 1 else []),
        f"{megabytes(4 * parameters)} per exchange, folder {trainer.folder}",
    )
    return "\n".join(lines)


@dataclass
class Pace:
    """What happened since the last tick: steps, their losses, the time they took."""

    begin: float
    position: int
    steps: int = 0
    loss: float = 0.0

    def add(self, loss: float) -> None:
        """Count one step."""
        self.steps += 1
        self.loss += loss

    def due(self) -> bool:
        """Tell whether it is time to report."""
        return self.steps > 0 and time.monotonic() - self.begin >= TICK_S


def figures(job: Job, pace: Pace) -> dict[str, float]:
    """Return the scalars of the board for the steps since the last tick."""
    seconds = time.monotonic() - pace.begin
    values = {
        "train/loss": pace.loss / pace.steps,
        "time/step_s": seconds / pace.steps,
        "time/exchange_s": job.seconds / pace.steps,
        "time/minibatches_per_s": (job.work.position - pace.position) / seconds,
        "sync/bytes": 4.0 * sum(group.length for group, _ in job.groups.values()),
    }
    if len(job.cluster.ranks()) > job.size:
        values["sync/workers"] = float(len(job.cluster.here()))
    job.seconds = 0.0
    values.update(traffic(job, pace.steps / seconds))
    for _, rule in job.groups.values():
        values.update(rule.report())
    return values


def traffic(job: Job, steps_per_s: float) -> dict[str, float]:
    """Return how fast this worker's exchanges pass through each box, in GB/s of payload."""
    weights = [1.0] * len(job.cluster.transports)
    floats = [0] * len(weights)
    for group, _ in job.groups.values():
        for box, (_, count) in enumerate(split(group.length, weights)):
            floats[box] += count
    return {f"box/{box}/GBps": 4e-9 * n * steps_per_s for box, n in enumerate(floats)}


def short(values: dict[str, float], history: list[dict[str, float]]) -> dict[str, str]:
    """Return the figures of the progress bar."""
    share = values["time/exchange_s"] / max(values["time/step_s"], 1e-9)
    shown = {
        "loss": f"{values['train/loss']:.4f}",
        "val": f"{history[-1]['score']:.4f}" if history else "-",
        "mb/s": f"{values['time/minibatches_per_s']:.1f}",
        "exchange": f"{100 * share:.0f}%",
    }
    if "sync/workers" in values:
        shown["workers"] = f"{values['sync/workers']:.0f}"
    if "sync/staleness" in values:
        shown["stale"] = f"{values['sync/staleness']:.0f}"
    return shown


def result(trainer: Trainer, scores: dict[str, float], seconds: float) -> dict[str, Any]:
    """Return what result.json holds."""
    settings, cluster = trainer.settings, trainer.job.cluster
    late = [rank for rank in cluster.ranks()[trainer.job.size :] if cluster.state(rank)]
    return {
        "task": settings["task"]["name"],
        "rule": settings["rule"]["name"],
        "workers": trainer.job.size,
        "boxes": len(trainer.job.cluster.transports),
        "seed": trainer.seed,
        "minibatches": trainer.total,
        "primary": trainer.task.primary,
        "score": scores[trainer.task.primary],
        "test": scores,
        "validation": trainer.chief.history,
        "baselines": trainer.task.baselines() if trainer.run.extras else {},
        "seconds": round(seconds, 2),
        "joined_workers": late,
        "left_workers": [rank for rank in late if cluster.state(rank) == LEFT],
        "lost_workers": cluster.dead(),
        "load": os.getloadavg()[0],
    }


def summary(trainer: Trainer, result: dict[str, Any], picture: Path | None) -> str:
    """Return the lines that close a run: score, baselines, time, picture, how to go on."""
    name = result["primary"]
    base = "  ".join(f"{key} {value:.4f}" for key, value in result["baselines"].items())
    joined, left, lost = (result[f"{how}_workers"] for how in ("joined", "left", "lost"))
    board = f"tensorboard  tensorboard --logdir {trainer.folder}"
    shown = [f"picture      {picture}", board] if picture else []
    lines = [
        f"test {name} {result['score']:.4f}   (baselines: {base or 'none'})",
        f"time {result['seconds']:.1f} s, {result['minibatches']} minibatches, "
        f"{result['workers']} worker(s), rule {result['rule']}",
        *([f"workers that joined: {joined}, and left again: {left}"] if joined else []),
        *([f"workers lost on the way: {lost}"] if lost else []),
        *shown,
        f"evaluate     dlp eval run={shlex.quote(str(trainer.folder))}",
        f"again        {repeat(trainer)}",
    ]
    return "\n".join(lines)


UNREPEATED = (
    *("run.dir", "run.minibatches", "run.progress", "task.seed"),
    *("cluster.job", "cluster.boxes", "cluster.secret_file"),
)
"""Settings that a repeated run has otherwise, or that stand in front."""


def repeat(trainer: Trainer) -> str:
    """Return a command line that does the run again."""
    s = trainer.settings
    by_mpi = s["cluster"]["transport"] == "mpi"  # also where people have typed mpirun themselves
    launcher = "mpirun" if by_mpi else s.get("launcher", "local")
    words = [
        f"task={s['task']['name']}",
        f"rule={s['rule']['name']}",
        f"workers={trainer.job.size}",
        *([f"stages={trainer.cut.stages}"] if trainer.cut.stages > 1 else []),
        f"boxes={len(trainer.job.cluster.transports)}",
        *([f"launcher={launcher}"] if launcher != "local" else []),
        f"seed={trainer.seed}",
        f"run.minibatches={trainer.total}",
        *changed("rule", s["rule"], find_rule(s["rule"]["name"])),
        *changed("task", s["task"], type(trainer.task)),
        *changed("cluster", s["cluster"], ClusterConfig),
        *changed("run", s["run"], RunConfig),
        *changed("pipeline", s.get("pipeline", {}), PipelineConfig),
    ]
    return "dlp train " + " ".join(words)


def changed(group: str, settings: Mapping[str, Any], cls: type) -> list[str]:
    """Return the overrides of settings that are not a dataclass's defaults."""
    words = []
    for field in dataclasses.fields(cls):
        made = field.default_factory
        default = made() if made is not dataclasses.MISSING else field.default
        value = settings.get(field.name, default)
        if f"{group}.{field.name}" not in UNREPEATED and value != default:
            text = "null" if value is None else str(value).replace("'", "").replace(" ", "")
            if isinstance(value, str) and " " in value:
                text = json.dumps(value)
            words.append(shlex.quote(f"{group}.{field.name}={text}"))
    return words


def picture(
    folder: Path, history: list[dict[str, float]], image: Image.Image | None, result: dict[str, Any]
) -> Path:
    """Draw the result picture: curves on the left, predictions on the right."""
    import itertools

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loss = [(r["minibatch"], r["train/loss"]) for r in rows if "train/loss" in r]
    figure, axes = plt.subplot_mosaic(
        [["loss", "image"], ["score", "image"]], figsize=(12, 6), width_ratios=[1, 1.35]
    )
    axes["loss"].plot(*zip(*loss, strict=True), color="tab:blue", lw=1.2) if loss else None
    axes["loss"].set(ylabel="training loss", yscale="log", xlim=(0, result["minibatches"]))
    axes["loss"].yaxis.set_major_formatter("{x:g}")
    axes["loss"].yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes["loss"].yaxis.set_minor_formatter("{x:g}")
    at = [row["minibatch"] for row in history]
    axes["score"].plot(at, [row["score"] for row in history], "o-", color="tab:green", ms=4)
    lines = zip(result["baselines"].items(), itertools.cycle(("--", ":", "-.")), strict=False)
    for (name, value), style in lines:
        axes["score"].axhline(value, ls=style, color="grey", lw=1, label=f"{name} {value:.3f}")
    axes["score"].set(
        xlabel="minibatches of the whole job",
        ylabel=f"validation {result['primary']}",
        xlim=(0, result["minibatches"]),
    )
    if result["baselines"]:
        axes["score"].legend(frameon=False, fontsize=8, loc="lower right")
    for key in ("loss", "score"):
        axes[key].grid(alpha=0.25)
    axes["image"].axis("off")
    if image is not None:
        axes["image"].imshow(image)
    figure.suptitle(
        f"{result['task']}   rule {result['rule']}, {result['workers']} worker(s), "
        f"{result['boxes']} box(es)   test {result['primary']} {result['score']:.4f}"
    )
    figure.tight_layout()
    path = folder / "result.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
