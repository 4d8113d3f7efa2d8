"""Measure the memory boxes in turns with their bounds and with other systems; judge the ratios.

python scripts/bench_box.py --json box.json              # everything, about ten minutes
python scripts/bench_box.py --install-peers              # first: Open MPI, MPICH, Intel MPI, ...
python scripts/bench_box.py --quick --only small,start   # a smoke run of some rows
python scripts/bench_box.py --from box.json --markdown docs/benchmarks/box.md --plot box.png
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

from boxbench import peers, report  # noqa: E402
from boxbench.rows import Row, Settings, environment  # noqa: E402

from launch import bench  # noqa: E402

GROUPS = {
    "copy": ("memory.copies", "shm read and write beside memcpy"),
    "axpy": ("memory.axpy", "shm axpy beside a C loop; two workers beside one"),
    "elastic": ("memory.elastic", "shm elastic beside a fused C loop"),
    "rma": ("mpi.rma", "shm axpy and elastic beside Open MPI's one-sided operations"),
    "window": ("window.rows", "the transport mpi beside MPI's one-sided operations, shm and tcp"),
    "bf16": ("memory.narrow", "shm axpy of bf16 beside fp32"),
    "small": ("memory.small", "the smallest operations beside fixed limits"),
    "tcp": ("box.raw", "tcp write, read, axpy beside a raw loopback socket"),
    "gloo": ("exchange.rows", "the synchronous exchange beside gloo"),
    "mpi": ("mpi.sums", "the synchronous exchange beside every MPI's Allreduce"),
    "push": ("push.rows", "a push beside torch.distributed.rpc and Mooncake"),
    "links": ("links.rows", "1, 2, 4 boxes behind shaped links (needs root)"),
    "start": ("box.start", "a box's start and its idle memory"),
    "bytes": ("box.traffic", "the bytes that an exchange moves through sockets"),
}
QUICK, REFUSED = 3, 3


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    texts = "\n".join(f"  {name:9}{text}" for name, (_, text) in GROUPS.items())
    p = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog=f"groups of rows:\n{texts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = p.add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--markdown", type=Path, metavar="FILE", help="write the table into this page")
    add("--plot", type=Path, metavar="FILE", help="draw ratios against what is required")
    add("--from", type=Path, metavar="FILE", dest="source", help="measure nothing: take this JSON")
    add("--only", default="", metavar="NAME,...", help="measure these groups of rows")
    add("--repeat", type=int, default=30, metavar="N", help="turns of every row (default: 30)")
    add("--quick", action="store_true", help=f"a smoke run: {QUICK} turns, shorter transfers")
    add("--force", action="store_true", help="measure although the machine is busy")
    add("--peers", type=Path, default=Settings().peers, metavar="DIR",
        help="environments of the peers (default: %(default)s)")  # fmt: skip
    add("--install-peers", action="store_true", help="make those environments, then end")
    options = p.parse_args(argv)
    options.groups = [name for name in options.only.split(",") if name] or list(GROUPS)
    if unknown := [name for name in options.groups if name not in GROUPS]:
        p.error(f"--only {','.join(unknown)}: no such group - allowed: {', '.join(GROUPS)}")
    if options.repeat < 1:
        p.error(f"--repeat {options.repeat}: no count - allowed: 1 or more")
    return options


def measure(name: str, settings: Settings) -> Iterator[Row]:
    """Measure a group of rows; whatever goes wrong becomes a row that says so."""
    module, _, function = GROUPS[name][0].partition(".")
    try:
        work: Callable[[Settings], Iterator[Row]] = getattr(
            import_module(f"boxbench.{module}"), function
        )
        yield from work(settings)
    except Exception as error:  # the other groups are still worth measuring
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Row(name, GROUPS[name][1], "-", missing=reason)


def gather(options: argparse.Namespace) -> list[Row]:
    """Measure all groups asked for, a line of progress for each."""
    repeat = QUICK if options.quick else options.repeat
    settings = Settings(repeat, options.quick, options.peers.expanduser())
    os.environ |= environment()  # boxes start from this tree, too
    rows: list[Row] = []
    for name in options.groups:
        begin = time.monotonic()
        print(f"{name}: {GROUPS[name][1]}, load {bench.load()}", file=sys.stderr, flush=True)
        rows += measure(name, settings)
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; return the exit code."""
    options = parse(argv)
    if options.install_peers:
        wrong = peers.install(options.peers.expanduser())
        print("\n".join(wrong) or f"peers are in {options.peers}")
        return REFUSED if wrong else 0
    if options.source:
        found = json.loads(options.source.read_text())
    else:
        watch = report.Watch()
        if watch.load > bench.NOISY and not options.force:
            print(
                f"bench_box: error: load average {watch.load} - allowed: up to {bench.NOISY}, "
                "figures of a busy machine mean nothing - do: wait, or --force",
                file=sys.stderr,
            )
            return REFUSED
        rows = gather(options)
        found = report.data(rows, watch, QUICK if options.quick else options.repeat)
    report.show(found)
    for path, write in (
        (options.json, report.write_json),
        (options.markdown, report.write_markdown),
        (options.plot, report.plot),
    ):
        if path:
            write(path, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
