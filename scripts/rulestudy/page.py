"""The page of the study: one table per problem, plots beside it, all from the JSON file."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rulestudy.plan import RULES, TIMES, WIRES, WORKERS
from rulestudy.problems import PROBLEMS, TEST_SEEDS

BEGIN, END = "<!-- study: written by scripts/study_rules.py -->", "<!-- end of study -->"
Done = dict[str, Any]


def accuracies(done: Done, problem: str, name: str, workers: int) -> list[float]:
    """Return the test accuracy of every seed that has been run."""
    keys = [f"test/{problem}/{name}/{workers}/{seed}" for seed in TEST_SEEDS]
    return [done[key]["accuracy"] for key in keys if key in done]


def shown(values: list[float]) -> str:
    """Return mean and spread in percent."""
    if not values:
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def table(done: Done, problem: str) -> list[str]:
    """Return the rows of one problem, the gap to alone at 16 workers last."""
    alone = accuracies(done, problem, "alone", 1)
    recipe = PROBLEMS[problem]
    lines = [
        f"**{problem}**, {recipe.minibatches} minibatches of {recipe.batch} for all workers "
        f"together, test accuracy in %, {len(alone)} seeds; alone {shown(alone)}",
        "",
        "| rule | " + " | ".join(f"p = {p}" for p in WORKERS) + " | p = 16 minus alone | rate x |",
        "| --- |" + " ---: |" * (len(WORKERS) + 2),
    ]
    for name in RULES:
        values = [accuracies(done, problem, name, workers) for workers in WORKERS]
        if not values[-1]:
            continue
        gap = 100 * (statistics.mean(values[-1]) - statistics.mean(alone))
        factor = done[f"test/{problem}/{name}/16/{TEST_SEEDS[0]}"]["factor"]
        cells = " | ".join(map(shown, values))
        lines.append(f"| `{name}` | {cells} | {gap:+.1f} | {factor:g} |")
    return lines


def real(done: Done) -> list[str]:
    """Return real processes beside the simulation, with the same rates and seeds."""
    lines = [
        "| rule | p = 2 real | simulated | p = 4 real | simulated |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in RULES:
        cells = []
        for workers in (2, 4):
            keys = [k for k in done if k.startswith(f"real/digits/{name}/{workers}/")]
            cells.append(shown([done[key]["accuracy"] for key in keys]))
            same = [key.replace("real/", "test/") for key in keys]
            cells.append(shown([done[key]["accuracy"] for key in same if key in done]))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def wires(done: Done) -> list[str]:
    """Return bytes against accuracy of narrow formats with eight workers."""
    lines = [
        "| rule | wire | MB sent by a worker | digits | shapes |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    found = sorted({tuple(key.split("/")[2:4]) for key in done if key.startswith("wire/")})
    for name, wire in found:
        cells, sent = [], 0.0
        for problem in PROBLEMS:
            keys = [k for k in done if k.startswith(f"wire/{problem}/{name}/{wire}/")]
            cells.append(shown([done[key]["accuracy"] for key in keys]))
            sent = max([sent, *(done[key]["sent"] / 1e6 for key in keys)])
        lines.append(f"| `{name}` | {wire} | {sent:.2f} | " + " | ".join(cells) + " |")
    return lines


def longer(done: Done) -> list[str]:
    """Return accuracy with 16 workers beside runs that train several times as many minibatches."""
    heads = [f"{problem} | {TIMES} x as long | minus alone" for problem in PROBLEMS]
    lines = ["| rule | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * 3 * len(PROBLEMS)]

    def scores(problem: str, name: str) -> list[float]:
        keys = [f"long/{problem}/{name}/{seed}" for seed in TEST_SEEDS]
        return [done[key]["accuracy"] for key in keys if key in done]

    for name, workers in [("alone", 1), *((name, 16) for name in RULES)]:
        cells = []
        for problem in PROBLEMS:
            one, many = scores(problem, "alone"), scores(problem, name)
            gap = 100 * (statistics.mean(many) - statistics.mean(one)) if one and many else None
            cells += [shown(accuracies(done, problem, name, workers)), shown(many)]
            cells.append("-" if gap is None else f"{gap:+.1f}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def goodput(done: Done) -> list[str]:
    """Return goodput by the size of the job."""
    lines = [
        "| machines | failures a day | restart all | memory boxes | closed form |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in done["goodput"]["sizes"]:
        shares = (row["restart_all"], row["boxes"], *row["closed_form"])
        all_, boxes, one, other = (f"{100 * share:.1f} %" for share in shares)
        lines.append(
            f"| {row['workers']:,} | {row['failures_per_day']:.1f} | {all_} | {boxes} | "
            f"{one}, {other} |"
        )
    lines += ["", "| rule | workers that died, of 16 | goodput of the living | accuracy |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name, row in done["goodput"]["rules"].items():
        lines.append(
            f"| `{name}` | {row['deaths']} | {100 * row['goodput']:.1f} % | "
            f"{100 * row['accuracy']:.1f} % |"
        )
    return lines


def write_page(done: Done, page: Path) -> None:
    """Write the tables between the marks of a page, and the plots beside it."""
    parts = [line for problem in PROBLEMS for line in [*table(done, problem), ""]]
    if any(key.startswith("wire/") for key in done):
        parts += ["## Bytes against accuracy", "", *wires(done), ""]
    if any(key.startswith("long/") for key in done):
        parts += ["## Longer runs, 16 workers", "", *longer(done), ""]
    if any(key.startswith("real/") for key in done):
        parts += ["## Real processes", "", *real(done), ""]
    if "goodput" in done:
        parts += ["## Goodput under failures", "", *goodput(done), ""]
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, "", *parts, END]) + after)
    draw(done, page.with_suffix(".png"))


def draw(done: Done, path: Path) -> None:
    """Draw accuracy against workers, loss against time with a straggler, bytes against accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = [problem for problem in PROBLEMS if accuracies(done, problem, "alone", 1)]
    figure, axes = plt.subplots(
        3, len(problems), figsize=(7 * len(problems), 14), squeeze=False, layout="constrained"
    )
    colours = dict(zip(RULES, plt.get_cmap("tab20").colors, strict=False))
    for column, problem in enumerate(problems):
        workers, seconds, sent = axes[0][column], axes[1][column], axes[2][column]
        alone = 100 * statistics.mean(accuracies(done, problem, "alone", 1))
        for one in (workers, sent):
            one.axhline(alone, color="black", ls="--", lw=1, label="alone")
            one.set(ylabel="test accuracy in %", ylim=(max(0, alone - 12), alone + 2))
        for name in RULES:
            values = [(p, accuracies(done, problem, name, p)) for p in WORKERS]
            points = [(p, 100 * statistics.mean(seen)) for p, seen in values if seen]
            if points:
                workers.plot(
                    *zip(*points, strict=True), "o-", ms=3, color=colours[name], label=name
                )
            slow = done.get(f"slow/{problem}/{name}")
            if slow and slow["curve"]:
                at, _, loss = zip(*slow["curve"], strict=True)
                seconds.plot(at, loss, color=colours[name], label=name)
            for style, bytes_, accuracy in carried(done, problem, name):
                sent.plot(bytes_, accuracy, style, ms=5, color=colours[name], label=name)
        workers.set(title=f"{problem}: equal minibatches", xscale="log", xlabel="workers")
        workers.set_xticks(WORKERS, [str(p) for p in WORKERS])
        seconds.set(
            title=f"{problem}: 8 workers, one four times as slow", yscale="log",
            xlabel="simulated seconds", ylabel="test loss", ylim=(None, 2.5),
        )  # fmt: skip
        sent.set(title=f"{problem}: 8 workers", xscale="log", xlabel="MB sent by a worker")
        for one in (workers, seconds, sent):
            one.grid(alpha=0.3)
            handles = dict(zip(*reversed(one.get_legend_handles_labels()), strict=True))
            one.legend(handles.values(), handles.keys(), fontsize=7, ncols=2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def carried(done: Done, problem: str, name: str) -> list[tuple[str, list[float], list[float]]]:
    """Return MB sent by one of eight workers and accuracy: with whole and with narrow payloads."""

    def points(prefixes: list[str]) -> tuple[list[float], list[float]]:
        runs = [[done[key] for key in done if key.startswith(prefix)] for prefix in prefixes]
        runs = [seeds for seeds in runs if seeds]
        return (
            [statistics.mean(one["sent"] for one in seeds) / 1e6 for seeds in runs],
            [100 * statistics.mean(one["accuracy"] for one in seeds) for seeds in runs],
        )

    return [
        ("o", *points([f"test/{problem}/{name}/8/"])),
        ("x--", *points([f"wire/{problem}/{name}/{wire}/" for wire in WIRES])),
    ]
