"""Finding: one line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` says what to do when it is not ``good``."""

    what: str
    value: str
    good: bool = True
    required: bool = False
    remedy: str = ""

    @property
    def mark(self) -> str:
        """Return the word of the first column."""
        return "ok" if self.good else "MISSING" if self.required else "-"
