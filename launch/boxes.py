"""``dlp box``: run a memory box, or look after running ones: status, top, drain, snapshot."""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dlplatform.errors import PeerLost, PlatformError, UsageError, closest
from dlplatform.memorybox import wire
from dlplatform.memorybox.options import Options, parser

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Figures = dict[str, Any]
PATIENCE_S, SNAPSHOT_S, BETWEEN_S, REFRESH_S = 10.0, 3600.0, 0.3, 1.0
RATES = ("requests", "in", "out", "changes")
LOGS = ("", "mirror lost", "journal lost", "moved")
HEADS = (
    "box, job", "workers", "segments", "memory", "quota", "requests/s", "in GB/s", "out GB/s",
    "changes/s", "lanes", "recovered", "epoch", "age", "snapshot",
)  # fmt: skip
ABOUT = {
    "status": "Say what a running box holds: jobs, workers, memory, traffic.",
    "top": "Watch running boxes; q or Ctrl-C ends it.",
    "drain": "Have a box take no new jobs; it ends, with exit code 0, when its last job has gone.",
    "snapshot": "Have a box write a snapshot of every job now.",
}
NOTES = """in, out: bytes of updates and reads that the box moved itself; workers on shm:// move
theirs without it. changes/s counts stripes (1 MiB) that anybody changed, they included."""
TRUST = "PEM file that vouches for tls:// (default: DLP_CA, or the system)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a box, or one of the verbs for running boxes; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = understand(words)
    if not hasattr(options, "verb"):
        from dlplatform.memorybox.server import main as serve

        return serve(words)
    return VERBS[options.verb](options)


def understand(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of ``dlp box``, or with a ``verb`` those of one for running boxes."""
    first = words[0] if words else ""
    if not first or first.startswith("-"):
        return parser().parse_args(words)
    if first not in VERBS:
        raise UsageError(
            f"dlp box {first} is not a command{closest(first, VERBS)} - allowed: "
            f"{', '.join(VERBS)}, or --bind URI for a new box - do: dlp box --help"
        )
    p = Options(prog=f"dlp box {first}", description=ABOUT[first], allow_abbrev=False,
                epilog=NOTES if first in ("status", "top") else None)  # fmt: skip
    secret = "the secret the box was started with (default: ~/.dlplatform/secret)"
    p.add_argument("uri", metavar="URI", nargs="+" if first == "top" else 1,
                   help="shm://NAME, or tcp://, tls:// or verbs://HOST:PORT")  # fmt: skip
    p.add_argument("--secret-file", default="", metavar="FILE", help=secret)
    p.add_argument("--ca", default="", metavar="FILE", help=TRUST)
    if first == "status":
        p.add_argument("--json", action="store_true", help="print JSON: all figures and rates")
    if first == "top":
        p.add_argument("--once", action="store_true", help="print one frame and stop")
    options = p.parse_args(words[1:])
    options.verb = first
    for uri in options.uri:
        check_address(uri)
    return options


def check_address(uri: str) -> None:
    """Refuse what cannot be the address of a box."""
    try:
        parts = urlsplit(uri)
        far = parts.scheme in wire.FAR and parts.hostname and parts.port
        good = bool(far or (parts.scheme == "shm" and parts.netloc))
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"dlp box: {uri!r} is not an address of a box - allowed: shm://NAME, or tcp://, tls:// "
            "or verbs://HOST:PORT - do: copy the address that dlp box printed"
        )


# -- asking a box ------------------------------------------------------------------------------


def ask(uri: str, options: argparse.Namespace, order: str) -> Figures:
    """Have a box obey one order, on a connection of its own."""
    secret = wire.load_secret(options.secret_file)
    try:
        with wire.connect(uri, PATIENCE_S, options.ca) as link:
            wire.introduce(link, secret, uri)
            link.settimeout(SNAPSHOT_S if order == "snapshot" else PATIENCE_S)
            wire.send(link, {"do": f"box/{order}"})
            reply = wire.receive(link)
    except PlatformError:
        raise
    except OSError as error:
        raise PeerLost(
            f"no memory box answers at {uri}: {error.strerror or error} - allowed: the address "
            "that dlp box printed - do: start it there (dlp box --bind ...) or correct the address"
        ) from None
    if "ok" not in reply:
        raise wire.refusal(reply)
    answer: Figures = reply["ok"]
    return answer


def rates(before: Figures, now: Figures) -> None:
    """Put into ``now`` what happened a second since another answer of the same box."""
    seconds = now["at"] - before.get("at", now["at"])
    again = seconds > 0 and before["instance"] == now["instance"]
    jobs = {name: (before.get("jobs", {}).get(name, {}), job) for name, job in now["jobs"].items()}
    for old, new in ((before.get("total", {}), now["total"]), *jobs.values()):
        for name in RATES:
            gained = new[name] - old.get(name, 0) if again else 0
            new[f"{name}_per_s"] = max(gained, 0) / seconds if seconds > 0 else 0.0


def measured(uri: str, options: argparse.Namespace) -> Figures:
    """Ask twice, so that there are rates."""
    before = ask(uri, options, "status")
    time.sleep(BETWEEN_S)
    now = ask(uri, options, "status")
    rates(before, now)
    return now


# -- what is shown -----------------------------------------------------------------------------


def in_bytes(count: float) -> str:
    """Return a number of bytes as text."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def in_time(seconds: float) -> str:
    """Return a time as text."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def columns(job: Figures) -> list[str]:
    """Return what is shown of one job, or of all."""
    workers = f"{job['workers']}" + (f" (+{job['away']} away)" if job["away"] else "")
    return [
        workers, str(job["segments"]), in_bytes(job["bytes"]),
        in_bytes(job["quota"]) if job.get("quota") else "-", f"{job['requests_per_s']:.0f}",
        f"{job['in_per_s'] / 1e9:.3f}", f"{job['out_per_s'] / 1e9:.3f}",
        f"{job['changes_per_s']:.0f}", str(job["lanes"]), str(job["recovered"]),
        str(job.get("epoch", "")),
    ]  # fmt: skip


def job_row(name: str, job: Figures) -> list[str]:
    """Return the row of one job."""
    saved = in_time(job["snapshot_age_s"]) + " ago" if "snapshot_age_s" in job else "-"
    log = LOGS[job["degraded"]] if job["degraded"] < len(LOGS) else str(job["degraded"])
    return [f"  {name}", *columns(job), in_time(job["age_s"]), log or saved]


def box_row(uri: str, now: Figures) -> list[str]:
    """Return the row of a whole box."""
    words = [uri, f"{in_bytes(now['memory'])} RAM"]
    if now["most_jobs"]:
        words.append(f"{len(now['jobs'])} of {now['most_jobs']} jobs")
    if now["total"]["refused"]:
        words.append(f"{now['total']['refused']} refused")
    words += ["draining"] if now["draining"] else []
    failed = "FAILED" if now["snapshots"].get("failed") else ""
    return [", ".join(words), *columns(now["total"]), in_time(now["uptime_s"]), failed]


def table(boxes: dict[str, Figures | str]) -> Table:
    """Return all boxes and their jobs; a text stands for a box that does not answer."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False)
    for head in HEADS:
        made.add_column(head, justify="left" if head == HEADS[0] else "right", overflow="fold")
    for uri, now in boxes.items():
        if isinstance(now, str):
            made.add_row(Text(f"{uri}: {now}", style="red"))
            continue
        made.add_row(*map(Text, box_row(uri, now)), style="bold")
        for name, job in sorted(now["jobs"].items()):
            made.add_row(*map(Text, job_row(name, job)))
    return made


def screen() -> Console:
    """Return where tables go; wide where the width is unknown."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=180)


# -- the verbs ---------------------------------------------------------------------------------


def status(options: argparse.Namespace) -> int:
    """Print what a box holds."""
    uri = options.uri[0]
    now = measured(uri, options)
    if options.json:
        print(json.dumps({"address": uri, **now}, indent=1))
        return 0
    console = screen()
    console.print(table({uri: now}))
    if failed := now["snapshots"].get("failed"):
        console.print(f"the last snapshot failed: {failed}", markup=False)
    return 0


def look(options: argparse.Namespace, before: dict[str, Figures]) -> dict[str, Figures | str]:
    """Ask all boxes at the same time; a box that was there before may be gone."""

    def one(uri: str) -> Figures | str:
        try:
            now = ask(uri, options, "status")
        except PlatformError as error:
            if uri not in before:
                raise
            return str(error).partition(" - allowed")[0].partition(f"{uri}: ")[2] or "no answer"
        rates(before.get(uri, {}), now)
        before[uri] = now
        return now

    with ThreadPoolExecutor(len(options.uri)) as pool:
        return dict(zip(options.uri, pool.map(one, options.uri), strict=True))


def top(options: argparse.Namespace) -> int:
    """Show boxes again and again."""
    console, before = screen(), dict[str, Figures]()
    look(options, before)
    time.sleep(BETWEEN_S)
    if options.once or not console.is_terminal:
        console.print(table(look(options, before)))
    if options.once:
        return 0
    try:
        if console.is_terminal:
            watch(console, options, before)
        while not console.is_terminal:  # a file, a pipe: one frame after the other
            time.sleep(REFRESH_S)
            console.print(table(look(options, before)))
    except KeyboardInterrupt:
        print()
    return 0


def watch(console: Console, options: argparse.Namespace, before: dict[str, Figures]) -> None:
    """Refresh the table in place until q."""
    from rich.live import Live

    with keys() as pressed, Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(look(options, before)), refresh=True)
            if pressed(REFRESH_S) in ("q", "Q"):
                return


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits some seconds for a key; it is q when the terminal has gone."""
    if not sys.stdin.isatty():

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait
        return
    import termios
    import tty

    def pressed(seconds: float) -> str:
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return ""
        try:
            return sys.stdin.read(1) or "q"
        except OSError:
            return "q"

    state = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        with suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, state)


def drain(options: argparse.Namespace) -> int:
    """Have a box end once its jobs have."""
    left = ask(options.uri[0], options, "drain")["jobs"]
    until = f"it ends with the last of its {left} jobs" if left else "it ends now, it has no job"
    print(f"{options.uri[0]} takes no new jobs; {until}")
    return 0


def snapshot(options: argparse.Namespace) -> int:
    """Have a box write its jobs to its folder."""
    done = ask(options.uri[0], options, "snapshot")
    for place in done["written"]:
        print(place)
    print(f"{len(done['written'])} jobs in {done['seconds']:.2f} s", file=sys.stderr)
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "status": status, "top": top, "drain": drain, "snapshot": snapshot,
}  # fmt: skip
