"""Chief: what one worker does for all - progress, scores, checkpoints, the result."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlplatform import checkpoint, report
from dlplatform.board import Board
from dlplatform.checkpoint import Checkpoint
from dlplatform.cli import REPORT
from dlplatform.memorybox.session import DIED, JOINED, LEFT
from dlplatform.pipeline.handover import Handover
from dlplatform.progress import Progress, open_progress

if TYPE_CHECKING:
    from torch import Tensor

    from dlplatform.trainer import Trainer

EVALUATIONS = 10
MOVES = {JOINED: "joined", LEFT: "left", DIED: "died; the others go on"}


class Chief:
    """A worker's part as chief; every worker has one, the lowest living rank uses it.

    Args:
        trainer: this worker's training.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.job = trainer, trainer.job
        self.every = trainer.run.eval_every or max(1, trainer.total // EVALUATIONS)
        self.history = list(trainer.saved.history) if trainer.saved else []
        self.best = self._best()
        self.known: dict[int, int] = {}
        self.over = False
        """Whether the training has ended, and the weights are final."""
        self.handover = Handover(trainer.cut, self.job.cluster, trainer.judge)
        self._board: Board | None = None
        self._progress: Progress | None = None

    def begin(self) -> None:
        """Start the clock of the run."""
        self.began = time.monotonic()
        self.pace = report.Pace(self.began, self.trainer.start)
        self.due = self._next_due()

    @property
    def progress(self) -> Progress:
        """Return the progress display, opened when first needed."""
        if self._progress is None:
            trainer = self.trainer
            self._progress = open_progress(trainer.run.progress, trainer.total, trainer.start)
        return self._progress

    @property
    def board(self) -> Board:
        """Return the board, opened when first needed."""
        if self._board is None:
            self._board = Board(self.trainer.folder, self.trainer.run.extras)
        return self._board

    def after(self, loss: float) -> None:
        """Run after every step: show how it goes, and score the weights when that is due."""
        self.pace.add(loss)
        self._tick()
        position = self.job.work.position
        # At the very end others may still push: then the trainer evaluates once more.
        if self.due <= position < self.trainer.total:
            if self.job.cluster.is_chief():
                self.evaluate()
            else:
                self.hand_over()
        if self.job.work.position >= self.due:
            self.due = self._next_due()

    def _best(self) -> float:
        return max((row["score"] for row in self.history), default=-math.inf)

    def _next_due(self) -> int:
        return (self.job.work.position // self.every + 1) * self.every

    def _tick(self) -> None:
        if not self.pace.due() or not self.job.cluster.is_chief():
            return
        self._say_who_moved()
        position = self.job.work.position
        figures = report.figures(self.job, self.pace)
        self.pace = report.Pace(time.monotonic(), position)
        self.board.scalars(position, figures)
        self.progress.update(position, report.short(figures, self.history))

    def _say_who_moved(self) -> None:
        cluster, before = self.job.cluster, self.known
        self.known = {rank: cluster.state(rank) for rank in cluster.ranks()}
        for rank, state in self.known.items():
            late = rank >= self.job.size
            # What became of its own workers the local launcher says itself.
            heard = late or (state == DIED and os.environ.get(REPORT) != "code")
            if heard and state in MOVES and state != before.get(rank):
                self.progress.say(f"worker {rank} {MOVES[state]}")

    def behind(self) -> bool:
        """Tell whether the weights of now have not been scored yet."""
        return not self.history or self.history[-1]["minibatch"] < self.job.work.position

    def evaluate(self) -> float:
        """Score the job's weights on the validation split and keep a checkpoint."""
        self.job.work.let_go()  # it may take longer than a lease
        if self.job.rank and not self.history:
            self._inherit()
        # Before the weights are read: what is trained meanwhile will be trained again.
        position, safe = self.job.work.position, self.trainer.safe_position()
        self._judge()
        task = self.trainer.task
        scores = self.trainer.judge.score("val")
        primary = scores[task.primary]
        self.history.append({"minibatch": position, "score": primary, **scores})
        self.board.scalars(position, {f"val/{name}": value for name, value in scores.items()})
        self._save(safe, scores, primary > self.best)
        self.best = max(self.best, primary)
        return primary

    def _inherit(self) -> None:
        """Go on with the record of a chief that is gone."""
        if self.job.cluster.gone() and checkpoint.exists(self.trainer.folder):
            self.history = list(Checkpoint.load(self.trainer.folder).history)
            self.best = self._best()

    def _judge(self) -> None:
        judge = self.trainer.judge
        judge.take(self.trainer.groups, self.trainer.models)
        self.trainer.statistics.average(judge.modules)
        if self.trainer.cut.stage == 0:
            self.handover.gather(self._when())

    def _when(self) -> str:
        return "end" if self.over else str(self.job.work.position)

    def hand_over(self) -> None:
        """Give the chief this worker's stage of the networks as it is now."""
        if self.trainer.cut.hands_over:
            self._judge()
            self.handover.give(self._when(), self._moments())

    def _moments(self) -> dict[str, Tensor]:
        trainer = self.trainer
        for _, rule in trainer.groups.values():
            rule.moments()
        mine = checkpoint.moments_of(trainer.optimizers) | trainer.judge.raw
        states = {} if trainer.stage else checkpoint.states_of(trainer.groups)
        return trainer.cut.outward(trainer.models, mine) | states

    def _save(self, position: int, scores: dict[str, float], best: bool) -> None:
        """Write a checkpoint of the judged weights."""
        trainer = self.trainer
        task = {**asdict(trainer.task), "name": str(trainer.settings["task"]["name"])}
        Checkpoint(
            position=position,
            weights=checkpoint.weights_of(trainer.judge.models),
            moments=self._moments() | self.handover.moments(),
            settings={**trainer.settings, "task": task},
            scores=scores,
            history=self.history,
            kept=trainer.task.state(),
        ).save(trainer.folder, best)

    def conclude(self) -> float:
        """Score the final weights on the test split, write the result and say it."""
        trainer, seconds = self.trainer, time.monotonic() - self.began
        self._judge()
        scores = trainer.judge.score("test")
        result = report.result(trainer, scores, seconds)
        picture = self._draw(result) if trainer.run.extras else None
        (trainer.folder / "result.json").write_text(json.dumps(result, indent=1))
        self.progress.close()
        self.progress.say(report.summary(trainer, result, picture))
        return float(result["score"])

    def _draw(self, result: dict[str, Any]) -> Path:
        """Show the result on the board, and in a picture whose path is returned."""
        trainer = self.trainer
        image = trainer.task.picture(trainer.judge.on_host())
        if image is not None:
            self.board.image("val/prediction", image, trainer.total)
        self.board.hparams(trainer.settings, result["test"])
        return report.picture(trainer.folder, self.history, image, result)

    def close(self) -> None:
        """Close the displays."""
        if self._progress is not None:
            self._progress.close()
        if self._board is not None:
            self._board.close()
