"""``dlp bench``: what the memory boxes move, beside what this machine can move at all.

Every row is measured in turns with its bound (ours, bound, ours, bound, ...), so that whatever
else runs on the machine slows both. A ratio of 1 means that nothing faster is possible here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dlplatform.errors import UsageError

if TYPE_CHECKING:
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.cluster import Cluster
    from dlplatform.transports.rawsocket import RawSocket

SIZES = "4K,1M,16M,64M"
TRANSPORTS, MORE = ("shm", "tcp"), ("verbs",)
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
ROW_S, FEWEST, BATCH = 1.5, 5, 1 << 20
NOISY = 2.5
NOTES = (
    "GB/s: bytes of the fp32 vector / time. Memory streams: read and write 2, axpy 3, elastic 4.",
    "shm bounds: memcpy, one C loop a += b, one fused C loop, all on private memory.",
    "tcp bound: a plain socket to another process that puts the same bytes into memory, or takes "
    "them from there, and acknowledges with one byte; for axpy the faster of that and of throwing "
    "them away; for elastic the faster of sending, then receiving, and both at once. The other "
    "side runs on the same cores.",
)
Call = Callable[[], object]


@dataclass
class Row:
    """One operation at one size: seconds of ours and of its bound, taken in turns."""

    transport: str
    op: str
    size: int
    bound_name: str
    ours: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the figures of the row: GB/s at the fastest and the median pair, ratios."""
        best = min(self.ours), min(self.bound)
        middle = statistics.median(self.ours), statistics.median(self.bound)
        names = ("ours", "bound", "median_ours", "median_bound")
        times = zip(names, best + middle, strict=True)
        rates = {name: float(f"{self.size / seconds / 1e9:.4g}") for name, seconds in times}
        return {
            "transport": self.transport, "op": self.op, "bytes": self.size,
            "bound_name": self.bound_name, **rates,
            "ratio": round(best[1] / best[0], 3), "median_ratio": round(middle[1] / middle[0], 3),
            "pairs": len(self.ours),
        }  # fmt: skip


def measure(row: Row, ours: Call, bounds: Sequence[Call], repeat: int) -> Row:
    """Time ours and its bound in turns; of several bounds the fastest counts."""
    loops = max(1, BATCH // row.size)
    for call in (ours, *bounds):
        call()
    end = time.perf_counter() + ROW_S
    for turn in range(repeat):
        row.ours.append(_seconds(ours, loops))
        row.bound.append(min(_seconds(call, loops) for call in bounds))
        if turn + 1 >= FEWEST and time.perf_counter() > end:
            break
    return row


def _seconds(call: Call, loops: int) -> float:
    begin = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - begin) / loops


class Subject:
    """A buffer in a box process of its own, and private memory of the same size."""

    def __init__(self, cluster: Cluster, size: int) -> None:
        from dlplatform.memorybox.memory import Memory

        self.size, self.floats = size, size // 4
        self.buffer: SharedBuffer = cluster.buffer(f"bench/{size}", self.floats, True)
        self._memory = [Memory(self.floats) for _ in range(2)]
        self.x, self.y = (memory.address for memory in self._memory)
        ctypes.memset(self.x, 0x3F, size)  # 0.747 everywhere: neither zeros nor denormals

    def ours(self) -> dict[str, Call]:
        """Return the operations on the box."""
        box, x = self.buffer, self.x
        return {
            "read": lambda: box.read(x),
            "write": lambda: box.write(x),
            "axpy": lambda: box.axpy(1e-6, x),
            "elastic": lambda: box.elastic(0.1, x),
        }

    def loops(self) -> dict[str, tuple[str, list[Call]]]:
        """Return the bounds of memory: the same work on private memory."""
        from kernels import cpu

        x, y, floats = self.x, self.y, self.floats
        return {
            "read": ("memcpy", [lambda: cpu.copy(x, y, self.size)]),
            "write": ("memcpy", [lambda: cpu.copy(y, x, self.size)]),
            "axpy": ("a += b", [lambda: cpu.run("axpy", y, x, floats, 1e-6)]),
            "elastic": ("fused loop", [lambda: cpu.run("elastic", y, x, floats, 0.1)]),
        }

    def sockets(self, raw: RawSocket) -> dict[str, tuple[str, list[Call]]]:
        """Return the bounds of a socket: the same bytes over a plain one."""
        view = memoryview((ctypes.c_char * self.size).from_address(self.y)).cast("B")
        push, drop = (lambda: raw.send(view)), (lambda: raw.drop(view))
        both: list[Call] = [lambda: raw.echo(view), lambda: raw.duplex(view)]
        return {
            "read": ("socket", [lambda: raw.receive(view)]),
            "write": ("socket", [push]),
            "axpy": ("socket", [push, drop]),
            "elastic": ("socket both ways", both),
        }

    def close(self) -> None:
        """Free the buffer."""
        self.buffer.release()
        self.buffer.delete()


def measure_transport(transport: str, sizes: Sequence[int], repeat: int) -> Iterator[Row]:
    """Start a box and measure every operation at every size."""
    from dlplatform.memorybox.process import Boxes
    from dlplatform.transports.rawsocket import RawSocket

    with ExitStack() as stack:
        boxes = stack.enter_context(Boxes(1, transport))
        raw = stack.enter_context(RawSocket()) if transport == "tcp" else None
        cluster = _join(stack, boxes.addresses, boxes.secret)
        for size in sizes:
            subject = Subject(cluster, size)
            bounds = subject.sockets(raw) if raw else subject.loops()
            for op, call in subject.ours().items():
                name, limits = bounds[op]
                yield measure(Row(transport, op, size, name), call, limits, repeat)
            subject.close()


def _join(stack: ExitStack, addresses: list[str], secret: str) -> Cluster:
    from dlplatform.memorybox.cluster import Cluster

    cluster = Cluster(addresses, "bench", secret.encode())
    stack.callback(cluster.close)
    return cluster


def latencies(transports: Sequence[str]) -> dict[str, float]:
    """Return microseconds of the smallest operations, each the fastest of several batches."""
    from dlplatform.memorybox.process import Boxes

    found = {}
    for transport in transports:
        with ExitStack() as stack:
            boxes = stack.enter_context(Boxes(1, transport))
            cluster = _join(stack, boxes.addresses, boxes.secret)
            subject, counter = Subject(cluster, 4096), cluster.counter("bench")
            calls: dict[str, Call] = {
                "counter add": counter.add, "axpy 4 KiB": subject.ours()["axpy"],
            }  # fmt: skip
            for name, call in calls.items():
                best = min(_seconds(call, 200) for _ in range(10))
                found[f"{transport} {name}"] = round(best * 1e6, 2)
            subject.close()
    return found


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, kernel, date."""
    name = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {
        "cpu": name, "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(),
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
    }  # fmt: skip


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


class Report:
    """All rows of one run, and how they are shown."""

    def __init__(self) -> None:
        self.machine, self.load_start = machine(), load()
        self.rows: list[dict[str, Any]] = []
        self.latency: dict[str, float] = {}

    def data(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        loads = [self.load_start, load()]
        return {
            **self.machine, "load_start": loads[0], "load_end": loads[1],
            "publishable": max(loads) <= NOISY, "rows": self.rows,
            "latency_us": self.latency, "notes": list(NOTES),
        }  # fmt: skip


def verdict(data: dict[str, Any]) -> str:
    """Return the load average, and whether it allows to publish the figures."""
    text = f"load average {data['load_start']} at the start, {data['load_end']} at the end"
    if data["publishable"]:
        return text
    return f"{text}: above {NOISY}, so these figures are not to be published"


def _headline(data: dict[str, Any]) -> str:
    return f"{data['cpu']}, {data['cores']} cores, Linux {data['kernel']}, {data['date']}"


def human(size: int) -> str:
    """Return a number of bytes as people say it."""
    for letter, unit in reversed(UNITS.items()):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {letter}iB"
    return f"{size} B"


HEADS = ("box", "size", "operation", "GB/s", "bound", "ratio", "median", "its bound", "ratio",
         "pairs", "bound is")  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row of the table as text."""
    rates = [f"{row[n]:.2f}" for n in ("ours", "bound", "ratio")]
    medians = [f"{row[n]:.2f}" for n in ("median_ours", "median_bound", "median_ratio")]
    head = [row["transport"], human(row["bytes"]), row["op"]]
    return [*head, *rates, *medians, str(row["pairs"]), row["bound_name"]]


def markdown(data: dict[str, Any]) -> str:
    """Return the report as a markdown page."""
    table = [HEADS, ["---"] * len(HEADS), *(cells(row) for row in data["rows"])]
    lines = [_headline(data), "", verdict(data), ""]
    lines += ["| " + " | ".join(line) + " |" for line in table]
    lines += ["", "| smallest operations | us |", "| --- | --- |"]
    lines += [f"| {name} | {us:.2f} |" for name, us in data["latency_us"].items()]
    return "\n".join([*lines, "", *(f"- {note}" for note in data["notes"]), ""])


def show(data: dict[str, Any]) -> None:
    """Print the report as a table; ratios in colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=110)
    table = Table(box=None, pad_edge=False)
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("box", "bound is") else "right")
    for number, row in enumerate(data["rows"]):
        line: list[str | Text] = [*cells(row)]
        for column, key in ((5, "ratio"), (8, "median_ratio")):
            line[column] = Text(str(line[column]), style=_colour(row[key]))
        group = data["rows"][number : number + 2]
        table.add_row(*line, end_section=group[0]["bytes"] != group[-1]["bytes"])
    console.print(_headline(data), style="bold", markup=False)
    console.print(table)
    for name, us in data["latency_us"].items():
        console.print(f"{name}: [bold]{us:.2f} us[/]")
    for note in data["notes"]:
        console.print(note, style="dim", markup=False)
    console.print(verdict(data), style="green" if data["publishable"] else "yellow")


def _colour(ratio: float) -> str:
    return "green" if ratio >= 0.8 else "yellow" if ratio >= 0.6 else "red"


class Parser(argparse.ArgumentParser):
    """Options whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the options."""
        raise UsageError(f"dlp bench: {message} - allowed: see --help - do: dlp bench --help")


def parser() -> argparse.ArgumentParser:
    """Return the options of ``dlp bench``."""
    p = Parser(prog="dlp bench", description="Measure memory boxes beside this machine's limits.")
    p.add_argument("--sizes", default=SIZES, metavar="LIST",
                   help=f"bytes of the vector, with K, M or G (default: {SIZES})")  # fmt: skip
    p.add_argument("--transports", default=",".join(TRANSPORTS),
                   metavar="LIST", help="shm, tcp, verbs (default: shm,tcp)")  # fmt: skip
    p.add_argument("--repeat", default="30", metavar="N",
                   help="pairs a row, fewer where a row takes long (default: 30)")  # fmt: skip
    p.add_argument("--json", default="", metavar="FILE", help="write all figures as JSON")
    p.add_argument("--markdown", default="", metavar="FILE", help="write the table as markdown")
    return p


def sizes_of(text: str) -> list[int]:
    """Return the sizes in bytes."""
    return [_size(word.strip()) for word in text.split(",")]


def _size(word: str) -> int:
    digits, unit = word[:-1], UNITS.get(word[-1:].upper(), 0)
    digits, unit = (digits, unit) if unit else (word, 1)
    size = int(digits) * unit if digits.isdecimal() else 0
    if not 4 <= size <= 16 << 30 or size % 4:
        raise UsageError(
            f"--sizes {word}: no size - allowed: multiples of 4 bytes from 4 to 16G - do: write "
            f"for example {SIZES}"
        )
    return size


def transports_of(text: str) -> list[str]:
    """Return the names of the transports."""
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in (*TRANSPORTS, *MORE):
            raise UsageError(
                f"--transports {name}: cannot be measured - allowed: "
                f"{', '.join((*TRANSPORTS, *MORE))} - do: leave it out for the first two"
            )
    return names


def repeat_of(text: str) -> int:
    """Return the number of pairs."""
    if not (text.isdecimal() and 1 <= int(text) <= 10_000):
        raise UsageError(f"--repeat {text}: no count - allowed: 1 to 10000 - do: leave it out")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it to the files asked for; return the exit code."""
    options = parser().parse_args(argv)
    sizes, names = sizes_of(options.sizes), transports_of(options.transports)
    repeat = repeat_of(options.repeat)
    report = Report()
    for name in names:
        report.rows += [row.summary() for row in measure_transport(name, sizes, repeat)]
    report.latency = latencies(names)
    data = report.data()
    show(data)
    for path, text in ((options.json, json.dumps(data, indent=1)), (options.markdown, None)):
        if path:
            _save(path, text or markdown(data))
    return 0


def _save(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror} - allowed: a file in a writable folder - do: name another"
        ) from None
