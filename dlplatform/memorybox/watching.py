"""Watching a box: its figures, the orders of ``dlp box VERB``, Prometheus, and a log of events."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dlplatform.errors import BoxError, EnvironmentMissing, UsageError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from dlplatform.memorybox.box import MemoryBox
    from dlplatform.memorybox.namespace import Namespace
    from dlplatform.memorybox.server import Server
    from dlplatform.memorybox.session import Fields

RECOVERED, VERSION = 24, 32
"""Bytes from the beginning of a segment's header (kernels/native/dlp.h)."""
SUMMED = ("segments", "bytes", "workers", "away", "lanes", "changes", "recovered", "degraded")
REFUSED_A_SECOND, WAITING = 10, 4096

# -- figures -----------------------------------------------------------------------------------


def memory() -> int:
    """Return how many bytes of RAM this process has, segments included."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def job_figures(space: Namespace) -> Fields:
    """Return what one job has and does; workers on shm move their bytes without the box."""
    with space.lock:
        headers = [entry.mapping.header for entry in space.entries.values()]
        sessions = list(space.sessions.values())

        def total(at: int) -> int:
            return sum(ctypes.c_uint64.from_address(header + at).value for header in headers)

        return {
            "segments": len(headers),
            "bytes": space.size,
            "quota": space.quota,
            "workers": sum(session.leases > 0 for session in sessions),
            "away": sum(session.leases == 0 for session in sessions),
            "lanes": len(space.lanes),
            "changes": total(VERSION),
            "recovered": total(RECOVERED),
            "epoch": space.epoch,
            "age_s": time.monotonic() - space.born,
            "degraded": space.log.degraded if space.log else 0,
            **space.tally,
        }


def figures(server: Server) -> Fields:
    """Return what a box holds and has done, for each job and in all.

    ``at`` is the box's clock: rates are differences between two answers. ``changes`` counts
    stripes (1 MiB) changed by anybody, the workers that map them included.
    """
    box = server.box
    jobs = {space.name: job_figures(space) for space in list(box.spaces.values())}
    snapshots = server.lasting.figures() if server.lasting else {}
    for job, age_s in snapshots.get("age_s", {}).items():
        if job in jobs:
            jobs[job]["snapshot_age_s"] = age_s
    total = {name: sum(job[name] for job in jobs.values()) for name in SUMMED}
    return {
        "at": time.monotonic(), "pid": os.getpid(), "instance": box.instance,
        "uptime_s": time.monotonic() - box.born, "memory": memory(), "draining": box.draining,
        "connections": server.workers, "most_jobs": box.limits.jobs,
        "total": {**total, **box.tally}, "jobs": jobs, "snapshots": snapshots,
    }  # fmt: skip


# -- orders ------------------------------------------------------------------------------------


def give_orders(server: Server) -> None:
    """Let whoever knows the secret look after the box, without a job."""

    def status(box: MemoryBox) -> Fields:
        return figures(server)

    def drain(box: MemoryBox) -> Fields:
        again, left = box.draining, server.drain()
        if not again:
            box.tell("drain", jobs=left)
        return {"jobs": left}

    def snapshot(box: MemoryBox) -> Fields:
        if server.lasting is None:
            raise BoxError(
                "this box writes no snapshots - allowed: a box with --snapshot DIR - do: start it "
                "again with it"
            )
        return server.lasting.snapshot_now()

    server.orders |= {"box/status": status, "box/drain": drain, "box/snapshot": snapshot}


# -- Prometheus --------------------------------------------------------------------------------

GAUGES = {
    "segments": "Segments.",
    "bytes": "Bytes in segments.",
    "workers": "Workers connected.",
    "away": "Workers whose connection broke and who may come back.",
    "lanes": "Rows of requests.",
    "recovered": "Locks recovered from workers that died, in the segments there are.",
    "changes": "Changes of stripes (1 MiB), in the segments there are.",
}
JOB_GAUGES = {
    **GAUGES,
    "quota": "Most bytes in segments; 0: no limit.",
    "epoch": "Consistent views taken.",
    "age_s": "Seconds since the job came.",
    "degraded": "1: its mirror is lost, 2: its journal cannot be written, 3: the mirror took over.",
    "snapshot_age_s": "Seconds since its last snapshot.",
}
COUNTERS = {
    "requests": "Requests obeyed or refused.",
    "in": "Bytes of updates received.",
    "out": "Bytes of reads and answers sent.",
}
BOX_GAUGES = {
    "uptime_s": "Seconds since the box started.",
    "memory": "Bytes of RAM of the box, segments included.",
    "connections": "Connections of workers and of dlp box.",
    "draining": "1: it takes no new jobs.",
}
NAMES = {
    "in": "received_bytes", "out": "sent_bytes", "quota": "quota_bytes", "memory": "memory_bytes",
    "age_s": "age_seconds", "uptime_s": "uptime_seconds", "snapshot_age_s": "snapshot_age_seconds",
    "recovered": "recovered_locks", "degraded": "log_degraded",
}  # fmt: skip


class Exposition:
    """The figures of a box as Prometheus collects them."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as it is now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = figures(self.server)
        totals = now["total"]
        yield GaugeMetricFamily("dlp_box_jobs", "Jobs.", len(now["jobs"]))
        for name, text in BOX_GAUGES.items():
            yield GaugeMetricFamily(f"dlp_box_{NAMES.get(name, name)}", text, float(now[name]))
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"dlp_box_{NAMES.get(name, name)}", text, totals[name])
        for name, text in {**COUNTERS, "refused": "Requests refused."}.items():
            yield CounterMetricFamily(f"dlp_box_{NAMES.get(name, name)}", text, totals[name])
        for kind, names in ((GaugeMetricFamily, JOB_GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, text in names.items():
                family = kind(f"dlp_job_{NAMES.get(name, name)}", text, labels=["job"])
                for job, values in now["jobs"].items():
                    if name in values:
                        family.add_metric([job], values[name])
                yield family


def serve_metrics(server: Server, where: str) -> str:
    """Serve ``/metrics`` over HTTP in threads of its own; return the URL."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError:
        raise EnvironmentMissing(
            f"--metrics {where}: prometheus_client is not installed - allowed: with it - do: "
            "pip install prometheus_client"
        ) from None
    registry = CollectorRegistry()
    registry.register(Exposition(server))

    class Page(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            body = generate_latest(registry) if found else b"see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep standard error for errors."""

    try:
        parts = urlsplit(f"//{where}")
        if not parts.hostname or parts.port is None:
            raise ValueError("no address")
        httpd = ThreadingHTTPServer((parts.hostname, parts.port), Page)
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"--metrics {where}: {error} - allowed: HOST:PORT, not in use - do: choose another port"
        ) from None
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, name="metrics", daemon=True).start()
    return f"http://{parts.hostname}:{httpd.server_address[1]}/metrics"


# -- events ------------------------------------------------------------------------------------


class Events:
    """Events as lines of JSON; whoever tells one never waits for a disk or a pipe.

    Args:
        where: a file to append to, or - for standard output.
    """

    def __init__(self, where: str) -> None:
        self._descriptor = open_log(where)
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._second, self._refused, self._lost = 0, 0, 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def tell(self, event: str, level: str = "info", **fields: Any) -> None:
        """Log an event; more than ten refusals a second are only counted."""
        if event in ("refused", "stranger") and self._too_many():
            return
        with self._lock:
            lost, self._lost = self._lost, 0
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "event": event, **fields}
        try:
            self._lines.put_nowait(json.dumps(line | ({"not_logged": lost} if lost else {})))
        except queue.Full:
            with self._lock:
                self._lost += lost + 1

    def _too_many(self) -> bool:
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._refused = second, 0
            self._refused += 1
            self._lost += self._refused > REFUSED_A_SECOND
            return self._refused > REFUSED_A_SECOND

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            data = memoryview(line.encode() + b"\n")
            with suppress(OSError):  # a full disk, a reader that has gone
                while data:
                    data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Write what is left, for a second at most."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=0.5)
        self._writer.join(1.0)


def open_log(where: str) -> int:
    """Return a descriptor of the file that events are appended to."""
    if where == "-":
        return sys.stdout.fileno()
    try:
        return os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"--log {where}: {error.strerror} - allowed: a file that can be written, or - - do: "
            "choose another"
        ) from None


@contextmanager
def watched(server: Server, log: str) -> Iterator[None]:
    """Take orders, and log what happens to the box (``-``: to standard output), to its end."""
    box = server.box
    give_orders(server)
    if not log:
        yield
        return
    events = Events(log)
    box.tell = events.tell
    box.on_new.append(lambda space: events.tell("job opened", job=space.name))
    box.on_gone.append(lambda space: events.tell("job gone", job=space.name, bytes=space.size))
    try:
        yield
    finally:
        done: Fields = dict(box.tally)
        events.tell("end", uptime_s=round(time.monotonic() - box.born, 3), **done)
        events.close()
