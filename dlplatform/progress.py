"""Progress: one live bar for a terminal, plain lines elsewhere; the chief's voice."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from dlplatform.world import World

PLAIN_EVERY_S = 5.0


class Progress(Protocol):
    """What the loop tells a person while it runs."""

    def update(self, position: int, figures: dict[str, str]) -> None:
        """Show how far the job is, and figures by name."""

    def say(self, text: str) -> None:
        """Print a line."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_progress(kind: str, total: int, start: int) -> Progress:
    """Return the progress display for ``auto``, ``live``, ``plain`` or ``none``."""
    if kind == "auto":
        # mpirun gives its ranks a terminal that shows nothing before a line is complete.
        watched = sys.stdout.isatty() and not World.detect().mpi
        kind = os.environ.get("DLP_PROGRESS") or ("live" if watched else "plain")
    if kind == "live":
        return Hushed(Live(total, start))
    return Hushed(Plain(total, quiet=kind == "none"))


class Hushed:
    """Passes on to a display until nobody reads it any more (``dlp train | head``)."""

    def __init__(self, display: Progress) -> None:
        self.display: Progress | None = display

    def _pass_on(self, act: Callable[[Progress], None]) -> None:
        if self.display is None:
            return
        try:
            act(self.display)
        except BrokenPipeError:  # training matters more than watching it
            self.display = None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def update(self, position: int, figures: dict[str, str]) -> None:
        """Show how far the job is, and figures by name."""
        self._pass_on(lambda display: display.update(position, figures))

    def say(self, text: str) -> None:
        """Print a line."""
        self._pass_on(lambda display: display.say(text))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._pass_on(lambda display: display.close())


class Plain:
    """A line every few seconds, for logs."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self._last = time.monotonic()

    def update(self, position: int, figures: dict[str, str]) -> None:
        """Print a line when the last is old enough."""
        now = time.monotonic()
        if now - self._last >= PLAIN_EVERY_S:
            self._last = now
            text = "  ".join(f"{name} {value}" for name, value in figures.items())
            self.say(f"{position}/{self.total}  {text}")

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            print(text, flush=True)

    def close(self) -> None:
        """Have nothing to restore."""


class Live:
    """A bar with the figures behind it."""

    def __init__(self, total: int, start: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        width = None if os.environ.get("COLUMNS") or sys.stdout.isatty() else 110
        self._bar = Bar(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=Console(force_terminal=True, width=width),
        )
        self._task = self._bar.add_task("", total=total, completed=start, figures="")
        self._bar.start()

    def update(self, position: int, figures: dict[str, str]) -> None:
        """Move the bar."""
        text = "  ".join(f"[dim]{name}[/] {value}" for name, value in figures.items())
        self._bar.update(self._task, completed=position, figures=text)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the bar where it is."""
        self._bar.stop()


def describe(settings: dict[str, Any]) -> str:
    """Return settings on one line: ``name=value ...``."""
    return " ".join(
        f"{key}={value}" for key, value in settings.items() if key != "name" and value is not None
    )
