"""Train in turns with other systems and behind shaped links; judge the ratios, check the model.

python scripts/bench_train.py --install-peers            # once: Accelerate and torchft
python scripts/bench_train.py --json train.json          # everything, under eight minutes
python scripts/bench_train.py --quick --only mlp         # a smoke run of some rows
python scripts/bench_train.py --from docs/benchmarks/train.json --page
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from boxbench.report import Watch  # noqa: E402
from boxbench.rows import environment  # noqa: E402
from trainbench.rows import Row, Settings  # noqa: E402

from dlplatform.errors import closest  # noqa: E402
from launch import bench  # noqa: E402

GROUPS = {
    "mlp": ("contest.mlp", "a wide MLP beside torch DDP and beside no exchange"),
    "vgg": ("contest.vgg", "a small VGG beside torch DDP and beside no exchange"),
    "cnn": ("contest.cnn", "the CNN of zoo/digits, where computation dominates"),
    "digits": ("accuracy.rows", "seconds to 97 % test accuracy beside torch DDP"),
    "local": ("local.rows", "local SGD beside Accelerate and torchft"),
    "scaling": ("scaling.rows", "1 to 8 emulated accelerators behind shaped links (needs root)"),
    "gpu": ("contest.gpu", "a transformer on a GPU that two workers share (needs a GPU)"),
    "uneven": ("scaling.speeds", "workers of 1x, 2x and 4x speed (needs root)"),
}
USUAL = [name for name in GROUPS if name != "gpu"]
"""What is measured where nothing is named."""
REFUSED = 3


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    texts = "\n".join(f"  {name:9}{text}" for name, (_, text) in GROUPS.items())
    p = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog=f"groups of rows:\n{texts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = p.add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--page", type=Path, metavar="DIR", nargs="?", const=ROOT / "docs",
        help="write tables and pictures of the pages below DIR (default: docs)")  # fmt: skip
    add("--from", type=Path, metavar="FILE", dest="source", help="measure nothing: take this JSON")
    add("--only", default="", metavar="NAME,...", help="measure these groups of rows")
    add("--quick", action="store_true", help="a smoke run: few turns, few cases")
    add(
        "--force", action="store_true", help="measure, or write pages, although the machine is busy"
    )
    add("--peers", type=Path, default=Settings().peers, metavar="DIR",
        help="environments of the peers (default: %(default)s)")  # fmt: skip
    add("--install-peers", action="store_true", help="make those environments, then end")
    options = p.parse_args(argv)
    options.groups = [name for name in options.only.split(",") if name] or USUAL
    options.peers = options.peers.expanduser()
    return options


def unknown(groups: Sequence[str]) -> str:
    """Return one line about the first name that is no group, or nothing."""
    for name in groups:
        if name not in GROUPS:
            return (
                f"--only {name}: no such group{closest(name, GROUPS)} - allowed: "
                f"{', '.join(GROUPS)} - do: name some of these"
            )
    return ""


def refuse(text: str, code: int) -> int:
    """Say in one line why nothing is done; return the exit code."""
    print(f"bench_train: error: {text}", file=sys.stderr)
    return code


def measure(name: str, settings: Settings) -> Iterator[Row]:
    """Measure a group of rows; whatever goes wrong becomes a row that says so."""
    module, _, function = GROUPS[name][0].partition(".")
    try:
        work: Callable[[Settings], Iterator[Row]] = getattr(
            import_module(f"trainbench.{module}"), function
        )
        yield from work(settings)
    except Exception as error:  # the other groups are still worth measuring
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Row(name, GROUPS[name][1], "-", missing=reason)


def gather(options: argparse.Namespace) -> list[Row]:
    """Measure all groups asked for, with lines of progress."""
    from trainbench import report

    settings = Settings(options.quick, options.peers)
    os.environ |= environment()  # boxes start from this tree, too
    rows: list[Row] = []
    for name in options.groups:
        begin = time.monotonic()
        print(f"{name}: {GROUPS[name][1]}, load {bench.load()}", file=sys.stderr, flush=True)
        for row in measure(name, settings):
            rows.append(row)
            print("  " + " | ".join(report.cells(row.figures())), file=sys.stderr, flush=True)
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; return the exit code."""
    options = parse(argv)
    from trainbench import local, report

    if wrong := unknown(options.groups):
        return refuse(wrong, 2)
    if options.install_peers:
        failed = local.install(options.peers)
        print("\n".join(failed) or f"peers are in {options.peers}")
        return REFUSED if failed else 0
    if options.source:
        found = json.loads(options.source.read_text())
    else:
        watch = Watch()
        if watch.load > bench.NOISY and not options.force:
            return refuse(f"load average {watch.load} - allowed: up to {bench.NOISY}, figures of a "
                          "busy machine mean nothing - do: wait, or --force", REFUSED)  # fmt: skip
        found = report.data(gather(options), watch, options.quick)
    report.show(found)
    if options.json:
        report.write_json(options.json, found)
    if options.page and not report.publishable(found) and not options.force:
        return refuse(f"--page {options.page}: a smoke run or a busy machine (load average "
                      f"{found['load_before']} before) - allowed: all turns, up to "
                      f"{bench.NOISY} - do: measure again, or --force", REFUSED)  # fmt: skip
    if options.page:
        report.write_pages(options.page, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
