"""Train every recipe of a published size for some minibatches: is it right, and how fast is it?

python scripts/bench_full.py --json full.json                  # all of them, about ten minutes
python scripts/bench_full.py --recipes resnet_full,vgg_full --precision bf16 task.batch_size=64

One worker and the real command ``dlp train``, on made-up data in the format and of the size that
the recipe is for. A row is ms a minibatch (the median after the warm-up) and, as shares of it, the
time to read a minibatch (measured apart; with run.ahead it hides, up to 100 %) and the exchange.
What a network is worth after so few minibatches is not asked.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from fullbench import runs  # noqa: E402
from fullbench.recipes import RECIPES, Recipe, published  # noqa: E402
from training import machine  # noqa: E402

HEAD = ("recipe", "values", "batch", "samples/s", "ms/minibatch", "reading", "exchange", "MiB",
        "seconds", "note")  # fmt: skip
WIDTHS = (22, 11, 5, 9, 12, 7, 8, 6, 7)
LONG = 160
"""Characters of an error line that are shown."""


class Folders:
    """Data of the recipes, each made when it is first wanted.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[Callable[[Path], Path], Path] = {}

    def words(self, recipe: Recipe) -> list[str]:
        """Return the settings of a recipe, with where its data is."""
        if recipe.make is None:
            return list(recipe.words)
        if recipe.make not in self._made:
            home = self.root / f"data{len(self._made)}"
            home.mkdir()
            self._made[recipe.make] = recipe.make(home)
        return [f"task.data={self._made[recipe.make]}", *recipe.words]


def measure(name: str, folders: Folders, options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one recipe."""
    if name not in RECIPES:
        return {"recipe": name, "note": "", "error": "no data for it - do: add it to fullbench"}
    recipe, folder = RECIPES[name], folders.root / "run"
    wish = runs.Wish(
        options.device, options.precision, options.minibatches or recipe.minibatches,
        options.timeout, options.scores,
    )  # fmt: skip
    row = runs.measured(name, [*folders.words(recipe), *options.words], wish, folder)
    if row["step_s"]:
        row["reading_s"] = None if recipe.make is None else runs.reading_s(folder, wish.minibatches)
    shutil.rmtree(folder, ignore_errors=True)
    return row | {"note": recipe.note}


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table as text."""

    def told(key: str, form: str, factor: float = 1) -> str:
        return "-" if row.get(key) is None else format(row[key] * factor, form)

    step_s, reading_s = row.get("step_s"), row.get("reading_s")
    share = "-" if not step_s or reading_s is None else f"{min(1.0, reading_s / step_s):.0%}"
    notes = [row.get(key, "") for key in ("note", "how", "cut")]
    if row.get("loss_first") is not None:
        notes.append(f"loss {row['loss_first']:.3g} to {row['loss_last']:.3g}")
    if row["error"]:
        notes.insert(0, f"FAILED: {row['error'][:LONG]}")
    return [
        row["recipe"], told("values", ",d"), told("batch", "d"), told("samples_per_s", ".1f"),
        told("step_s", ".1f", 1e3), share, told("exchange_share", ".0%"), told("memory_mib", "d"),
        told("seconds", ".0f"), "; ".join(note for note in notes if note),
    ]  # fmt: skip


def line(words: Sequence[str]) -> str:
    """Return a line of the table: numbers to the right."""
    fitted = [
        word.ljust(width) if n == 0 else word.rjust(width)
        for n, (word, width) in enumerate(zip(words, WIDTHS, strict=False))
    ]
    return "  ".join([*fitted, words[-1]])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    known = published()
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--recipes", default="", metavar="NAME,...", help=", ".join(known))
    p.add_argument("--device", default="auto", help="as run.device (default: auto)")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    p.add_argument("--minibatches", type=int, default=0, metavar="N",
                   help="of every recipe (default: enough for some seconds on a GPU)")  # fmt: skip
    p.add_argument("--timeout", type=float, default=90, metavar="S",
                   help="seconds that a run has to start and train (default: 90)")  # fmt: skip
    p.add_argument("--scores", type=float, default=60, metavar="S",
                   help="seconds it has to score what it trained (default: 60)")  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures, row by row")
    p.add_argument("words", nargs="*", metavar="SETTING", help="more settings of every run, such "
                   "as task.batch_size=64")  # fmt: skip
    options = p.parse_args(argv)
    wanted = [word for word in options.recipes.split(",") if word]
    options.names = [n for n in known if not wanted or {n, n.partition("/")[2]} & set(wanted)]
    leaves = {*known, *(name.partition("/")[2] for name in known)}
    if unknown := [word for word in wanted if word not in leaves]:
        p.error(f"--recipes {','.join(unknown)}: no such recipe - allowed: {', '.join(known)}")
    for name in ("minibatches", "timeout", "scores"):
        if (value := getattr(options, name)) < 0:
            p.error(f"--{name} {value}: below 0 - allowed: 0 or more - do: leave it out")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print each row as it comes, write the figures; return 1 if a recipe failed."""
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the run, too
    found: dict[str, Any] = machine() | {
        "gpu": runs.asked(options.device, "name,driver_version"),
        "rows": [],
    }
    print(", ".join(str(found[key]) for key in ("gpu", "cpu", "cores", "torch") if found[key]))
    print(line(HEAD), flush=True)
    with tempfile.TemporaryDirectory(prefix="fullbench-") as root:
        folders = Folders(Path(root))
        for name in options.names:
            try:
                row = measure(name, folders, options)
            except Exception as error:  # the rows of the others are worth having
                row = {"recipe": name, "error": f"{type(error).__name__}: {error}"}
            found["rows"].append(row)
            print(line(cells(found["rows"][-1])), flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(row["error"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
