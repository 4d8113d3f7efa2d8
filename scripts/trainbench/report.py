"""What becomes of the rows: a table in the terminal, JSON, tables in pages, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxbench.report import Watch, required

from launch import bench
from trainbench import model, published
from trainbench.rows import Row

DPI = 130
HEADS = ("row", "ours (best, median)", "peer or bound", "(best, median)", "ratio of best",
         "ratio of medians", "required", "reached")  # fmt: skip


def data(rows: Sequence[Row], watch: Watch, quick: bool) -> dict[str, Any]:
    """Return everything of a run, ready for JSON."""
    figures = [row.figures() for row in rows]
    return {**bench.machine(), **watch.data(), "quick": quick, "rows": figures}


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write all figures."""
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def publishable(found: dict[str, Any]) -> bool:
    """Tell whether the figures may stand in a page: whole turns on a quiet machine."""
    return bool(found["publishable"]) and not found["quick"]


def headline(found: dict[str, Any]) -> str:
    """Return machine, date and load."""
    return (
        f"{found['cpu']}, {found['cores']} cores, Linux {found['kernel']}, {found['date']}; load "
        f"average {found['load_before']} before, {found['load_after']} after (the benchmark's own "
        f"processes included); CPU seconds: {found['cpu_s']} the benchmark's, "
        f"{found['others_cpu_s']} everybody else's"
    )


def reached(row: dict[str, Any]) -> str:
    """Return whether the best turns, or the medians too, reach what they must."""
    if row["reached"] is None:
        return "-"
    if row["reached"]:
        return "yes" if row["reached_median"] else "yes, median no"
    return "no, median yes" if row["reached_median"] else "no"


def digits(value: float) -> str:
    """Return a figure with three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row of the table as text."""
    need = required({"within": None} | row)
    if row["missing"]:
        return [row["name"], "-", row["peer"], f"not measured: {row['missing']}", "-", "-", need,
                "-"]  # fmt: skip
    ours, theirs = (
        ", ".join(digits(row[f"{side}_{word}"]) for word in ("best", "median")) + f" {row['unit']}"
        for side in ("ours", "theirs")
    )
    ratios = [f"{row[f'ratio_{word}']:.2f}" for word in ("best", "median")]
    return [row["name"], ours, row["peer"], theirs, *ratios, need, reached(row)]


def verdict(found: dict[str, Any]) -> str:
    """Return how many rows reach what they must, and whether they may be published."""
    judged = [row for row in found["rows"] if row["reached"] is not None]
    good = sum(row["reached"] for row in judged)
    absent = sum(bool(row["missing"]) for row in found["rows"])
    text = f"{good} of {len(judged)} rows reach what they must, {absent} could not be measured"
    if publishable(found):
        return text
    why = "a smoke run" if found["quick"] else f"the load average was above {bench.NOISY}"
    return f"{text}; {why}: not to be published"


def notes(found: dict[str, Any]) -> list[str]:
    """Return what to know about single rows, a line each."""
    return [f"- {row['name']} / {row['peer']}: {row['note']}" for row in found["rows"]
            if row["note"]]  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    for line in (headline(found), *map(" | ".join, [HEADS, *map(cells, found["rows"])])):
        print(line)
    print("\n".join([*notes(found), verdict(found)]))


# -- pages --------------------------------------------------------------------------------------


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table of markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in rows)


def results(found: dict[str, Any]) -> str:
    """Return the measured table with its head, verdict and notes."""
    table = grid(HEADS, [cells(row) for row in found["rows"]])
    return "\n".join([headline(found), "", table, "", verdict(found), "", *notes(found)])


def predicted(found: dict[str, Any]) -> str:
    """Return the predicted and the measured ratio of every row that has both."""
    lines = [
        [row["name"], row["peer"], f"{row['predicted']:.2f}", f"{row['ratio_median']:.2f}",
         f"{row['ratio_median'] / row['predicted'] - 1:+.0%}"]
        for row in found["rows"] if row["predicted"] and not row["missing"]
    ]  # fmt: skip
    head = ("row", "beside", "predicted ratio", "measured (medians)", "measured - predicted")
    return f"{headline(found)}. {verdict(found)}.\n\n{grid(head, lines)}"


def compared() -> str:
    """Return what others published beside what the model says."""
    lines = [[c.what, digits(c.published), digits(c.model), f"{c.ratio:.2f}", c.note or "-"]
             for c in published.checks()]  # fmt: skip
    return grid(("published", "figure", "model", "model / figure", "how"), lines)


def planned() -> str:
    """Return what 64 to 4,096 workers need."""
    lines = [
        [f"{n.network.name} ({n.network.why}: {n.network.compute:.2g} s)", str(n.workers),
         str(n.boxes), f"{n.ssgd:.0%}", str(n.few), str(n.interval)]
        for n in model.needs()
    ]  # fmt: skip
    head = ("network", "workers", "boxes for 97 % with `easgd`, interval 1",
            "`ssgd` keeps with as many", "n/16 boxes", "their interval for 97 %")  # fmt: skip
    return grid(head, lines)


def put(path: Path, name: str, text: str, script: str = "bench_train") -> None:
    """Put text between the two comments of a page that bear a name; the rest stays.

    Raises:
        ValueError: when the page has no such place.
    """
    begin, end = f"<!-- {name}: written by scripts/{script}.py -->", f"<!-- end of {name} -->"
    head, found, rest = path.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path} has no place for {name} - allowed: a page with {begin} - do: "
                         "add both comments")  # fmt: skip
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def write_pages(folder: Path, found: dict[str, Any]) -> None:
    """Write the tables and pictures of the pages of a folder ``docs``; text stays."""
    page, scaling = folder / "benchmarks" / "train.md", folder / "scaling.md"
    put(page, "train", results(found))
    put(scaling, "predicted", predicted(found))
    put(scaling, "published", compared())
    put(scaling, "plans", planned())
    draw_ratios(folder / "benchmarks" / "train.png", found)
    draw_scaling(folder / "scaling.png", found)
    draw_needs(folder / "scaling_plans.png")


# -- pictures ------------------------------------------------------------------------------------


def caption(found: dict[str, Any]) -> str:
    """Return what a picture says about when it was measured, and whether it counts."""
    text = f"{found['date']}, load average {found['load_before']} before"
    return text if publishable(found) else f"{text}: not to be published"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    _pyplot().close(figure)


def draw_ratios(path: Path, found: dict[str, Any]) -> None:
    """Draw every row's ratio of medians and best turns, and what it must reach."""
    kept = [row for row in found["rows"] if not row["missing"] and row["group"] != "scaling"][::-1]
    figure, axes = _pyplot().subplots(figsize=(10.5, 1.3 + 0.3 * len(kept)))
    for height, row in enumerate(kept):
        colour = {True: "tab:green", False: "tab:red", None: "tab:gray"}[row["reached"]]
        axes.barh(height + 0.2, row["ratio_best"], 0.38, color=colour)
        axes.barh(height - 0.2, row["ratio_median"], 0.38, color=colour, alpha=0.45)
        if row["required"]:
            axes.plot([row["required"]] * 2, [height - 0.45, height + 0.45], color="black", lw=2)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    names = [f"{row['name']}  /  {row['peer']}" for row in kept]
    axes.set_yticks(range(len(kept)), names, fontsize=7)
    axes.set_xlabel(
        "ours / theirs, more is better (solid: best turns, pale: medians, bar: required)"
    )
    axes.margins(y=0.01)
    axes.set_title(caption(found), fontsize=8)
    _save(figure, path)


def draw_scaling(path: Path, found: dict[str, Any]) -> None:
    """Draw the measured efficiency of emulated accelerators beside the model's."""
    kept = [row for row in found["rows"] if row["group"] in ("scaling", "uneven")
            and row["unit"] == "steps/s" and not row["missing"]][::-1]  # fmt: skip
    figure, axes = _pyplot().subplots(figsize=(9.5, 1.5 + 0.34 * len(kept)))
    for height, row in enumerate(kept):
        axes.barh(height, 100 * row["ratio_median"], 0.6, color="tab:blue")
        axes.plot(100 * row["predicted"], height, "D", color="tab:orange", markersize=7)
    axes.axvline(97, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(kept)), [row["name"] for row in kept], fontsize=8)
    axes.set_xlim(0, 105)
    axes.set_xlabel("% of n workers without communication (bars: measured, diamonds: model, "
                    "dashed: 97 %)", fontsize=8)  # fmt: skip
    axes.set_title(caption(found), fontsize=8)
    _save(figure, path)


def draw_needs(path: Path) -> None:
    """Draw boxes at interval 1, and efficiency against the interval with n/16 boxes."""
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(12, 4.6))
    intervals = [2**n for n in range(10)]
    for one in model.NETWORKS:
        boxes = [model.need(one, n).boxes for n in model.WORKERS]
        left.plot(model.WORKERS, boxes, "o-", label=one.name)
        kept = [100 * model.efficiency(one, 1024, 64, interval) for interval in intervals]
        right.plot(intervals, kept, "o-", label=one.name)
    left.set(xscale="log", yscale="log", xlabel="workers, 100 Gb/s each",
             ylabel="boxes of 100 Gb/s for 97 %", title="easgd, interval 1")  # fmt: skip
    left.set_xticks(model.WORKERS, [f"{n:,}" for n in model.WORKERS])
    left.minorticks_off()
    right.axhline(97, color="black", linewidth=1, linestyle="--")
    right.set(xscale="log", xlabel="interval (steps)", ylim=(0, 104),
              ylabel="% of the speed without communication",
              title="easgd, 1,024 workers, 64 boxes (dashed: 97 %)")  # fmt: skip
    right.set_xticks(intervals, [str(n) for n in intervals])
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)
