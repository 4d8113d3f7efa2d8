"""What becomes of the rows: a table in the terminal, JSON, a table in a page, a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boxbench.rows import Row
from launch import bench

BEGIN, END = "<!-- box: written by scripts/bench_box.py -->", "<!-- end of box -->"
HEADS = ("row", "ours (min, median)", "bound or peer", "(min, median)", "ratio of minima",
         "ratio of medians", "required", "reached")  # fmt: skip
SCALES = {"s": ((1.0, "s"), (1e-3, "ms"), (0.0, "us")),
          "B": ((float(1 << 20), "MiB"), (float(1 << 10), "KiB"), (0.0, "B"))}  # fmt: skip
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "B": 1.0, "KiB": 1024.0, "MiB": 1048576.0}


class Watch:
    """What else the machine did: load averages, and the CPU time of others."""

    def __init__(self) -> None:
        self.load = bench.load()
        self._busy, self._own = _busy_seconds(), sum(os.times()[:4])

    def data(self) -> dict[str, Any]:
        """Return the figures of the time since this object was made."""
        own = sum(os.times()[:4]) - self._own
        others = max(0.0, _busy_seconds() - self._busy - own)
        return {
            "load_before": self.load, "load_after": bench.load(), "cpu_s": round(own, 1),
            "others_cpu_s": round(others, 1), "publishable": self.load <= bench.NOISY,
        }  # fmt: skip


def _busy_seconds() -> float:
    """Return the CPU seconds that all processes have used since the machine started."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def data(rows: Sequence[Row], watch: Watch, repeat: int) -> dict[str, Any]:
    """Return everything of a run, ready for JSON."""
    figures = [row.figures() for row in rows]
    return {**bench.machine(), **watch.data(), "repeat": repeat, "rows": figures}


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write all figures."""
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def amounts(unit: str, least: float, middle: float) -> str:
    """Return a minimum and a median with the unit that suits them."""
    name = next(name for above, name in SCALES[unit] if least >= above)
    return ", ".join(_digits(value / UNITS[name]) for value in (least, middle)) + f" {name}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def reached(row: dict[str, Any]) -> str:
    """Return whether the minima, or the medians too, reach what they must."""
    if row["reached"] is None:
        return "-"
    if row["reached"]:
        return "yes" if row["reached_median"] else "yes, median no"
    return "no, median yes" if row["reached_median"] else "no"


def required(row: dict[str, Any]) -> str:
    """Return the ratio that must be reached."""
    if row["within"] is not None:
        return f"1 ± {row['within']:.0%}"
    return "-" if row["required"] is None else f"{row['required']:.2f}"


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row of the table as text."""
    if row["missing"]:
        return [row["name"], "-", row["peer"], f"not measured: {row['missing']}", "-", "-",
                required(row), "-"]  # fmt: skip
    ours, theirs = (
        amounts(row["unit"], row[f"{side}_min"], row[f"{side}_median"])
        for side in ("ours", "theirs")
    )
    digits = 4 if row["within"] is not None else 2
    ratios = [row[f"ratio_{word}"] for word in ("min", "median")]
    texts = ["-" if ratio is None else f"{ratio:.{digits}f}" for ratio in ratios]
    return [row["name"], ours, row["peer"], theirs, *texts, required(row), reached(row)]


def headline(found: dict[str, Any]) -> str:
    """Return machine, date and load."""
    return (
        f"{found['cpu']}, {found['cores']} cores, Linux {found['kernel']}, {found['date']}; "
        f"{found['repeat']} turns; load average {found['load_before']} before, "
        f"{found['load_after']} after (the benchmark's own processes included); CPU seconds: "
        f"{found['cpu_s']} the benchmark's, {found['others_cpu_s']} everybody else's"
    )


def notes(found: dict[str, Any]) -> Iterator[str]:
    """Yield what to know about single rows, a line each."""
    for row in found["rows"]:
        if row["note"]:
            yield f"{row['name']} / {row['peer']}: {row['note']}"


def verdict(found: dict[str, Any]) -> str:
    """Return how many rows reach what they must, and whether they may be published."""
    judged = [row for row in found["rows"] if row["reached"] is not None]
    good = sum(row["reached"] for row in judged)
    absent = sum(bool(row["missing"]) for row in found["rows"])
    text = f"{good} of {len(judged)} rows reach what they must, {absent} could not be measured"
    if found["publishable"]:
        return text
    return f"{text}; the load average was above {bench.NOISY}: not to be published"


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=170)
    table = Table(box=None, pad_edge=False)
    for head in HEADS:
        table.add_column(head, justify="right" if head.startswith("ratio") else "left")
    group = ""
    for row in found["rows"]:
        if group and row["group"] != group:
            table.add_section()
        group = row["group"]
        *line, last = cells(row)
        colour = {True: "green", False: "red", None: "yellow"}[row["reached"]]
        table.add_row(*(Text(cell) for cell in line), Text(last, style=colour))
    console.print(headline(found), style="bold", markup=False)
    console.print(table)
    for note in notes(found):
        console.print(f"- {note}", style="dim", markup=False)
    console.print(verdict(found), style="bold", markup=False)


def markdown(found: dict[str, Any]) -> str:
    """Return the table as markdown."""
    lines = [HEADS, ["---"] * len(HEADS), *map(cells, found["rows"])]
    table = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
    listed = [f"- {note}" for note in notes(found)]
    return "\n".join([headline(found), "", *table, "", verdict(found), "", *listed])


def write_markdown(path: Path, found: dict[str, Any]) -> None:
    """Put the table between the two comments of a page; a page without them is made anew."""
    text = path.read_text() if path.exists() else ""
    if BEGIN not in text or END not in text:
        text = f"{text}{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    path.write_text(f"{head}{BEGIN}\n\n{markdown(found)}\n\n{END}{tail}")


def plot(path: Path, found: dict[str, Any]) -> None:
    """Draw what every row reaches, as a multiple of what it must reach."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kept = [row for row in found["rows"] if row.get("ratio_min") and row["required"]][::-1]
    heights = range(len(kept))
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.26 * len(kept)))
    for shift, word, alpha in ((0.2, "min", 1.0), (-0.2, "median", 0.45)):
        values = [row[f"ratio_{word}"] / row["required"] for row in kept]
        colours = ["tab:green" if row["reached"] else "tab:red" for row in kept]
        places = [height + shift for height in heights]
        axes.barh(places, values, 0.38, color=colours, alpha=alpha)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(list(heights), [f"{row['name']}  /  {row['peer']}" for row in kept], fontsize=7)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 0.7, 1, 1.5, 2, 3, 5], ["0.5", "0.7", "1", "1.5", "2", "3", "5"])
    axes.minorticks_off()
    axes.set_xlabel("ratio reached / ratio required (solid: minima, pale: medians)")
    axes.margins(y=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
