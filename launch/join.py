"""``dlp join``: start more workers for a job that runs already; they may leave before it ends."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlplatform.errors import EnvironmentMissing, PeerLost, UsageError
from dlplatform.job import DOOR, SETTINGS, Place
from dlplatform.memorybox import wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.options import Options
from dlplatform.rules.rule import find_rule, rules
from dlplatform.world import LATE
from launch import boxes, job, local

START_S = 45.0
"""A job that has begun so recently may still be starting."""
HERE = ("localhost", "127.0.0.1", "::1")
QUIET = (0, 130, -signal.SIGINT, -signal.SIGTERM)
"""How a worker ends that was asked to leave, also before it had begun."""


def parser() -> argparse.ArgumentParser:
    """Return the options of ``dlp join``."""
    p = Options(prog="dlp join", add_help=False, allow_abbrev=False)
    p.add_argument("where")
    p.add_argument("--workers", default="1")
    p.add_argument("--dir", default="")
    p.add_argument("--job", default="")
    p.add_argument("--secret-file", default="")
    p.add_argument("--ca", default="")
    return p


def main(argv: Sequence[str]) -> int:
    """Join a job with some workers, wait until they have left or the job is done."""
    options = parser().parse_args(list(argv))
    if not (options.workers.isdecimal() and 1 <= int(options.workers) <= 4096):
        raise UsageError(
            f"--workers {options.workers} cannot work - allowed: 1 to 4096 - do: --workers 1"
        )
    far = "://" in options.where
    place = _at_boxes(options.where.split(","), options) if far else _in_folder(options)
    folder = options.dir or ("" if far else options.where)
    config, size, first = _enter(place, int(options.workers), folder)
    return Crew(config, size).run(range(first, first + int(options.workers)))


# -- finding the job ---------------------------------------------------------------------------


def _in_folder(options: argparse.Namespace) -> Place:
    """Return the place of the job that has a run folder, as soon as it has started."""
    folder = Path(options.where)
    settings, door = folder / job.CONFIG, folder / DOOR
    if not settings.is_file() and not door.is_file():
        raise UsageError(
            f"{folder} is neither a run folder nor an address - allowed: the run.dir of a running "
            "job, or its cluster.boxes with commas - do: ls outputs/*/*"
        )
    if settings.is_file():
        _check(json.loads(settings.read_text()))
    while not door.is_file():
        if (folder / job.RESULT).exists() or time.time() > settings.stat().st_mtime + START_S:
            raise PeerLost(
                f"the job in {folder} does not run - allowed: a running job - do: dlp train ... "
                f"run.dir={folder} resume=auto"
            )
        time.sleep(0.1)
    return Place.found(door, options.secret_file)


def _at_boxes(addresses: list[str], options: argparse.Namespace) -> Place:
    """Return the place of a job in boxes at some addresses; there may be one without a name."""
    for address in addresses:
        boxes.check_address(address)
    known = boxes.ask(addresses[0], options, "status")["jobs"]
    jobs = sorted(name for name in known if ":" not in name)  # with a colon: mirrors
    if options.job not in (jobs or [options.job]) and (options.job or len(jobs) > 1):
        raise UsageError(
            f"--job {options.job or 'is missing'}: {addresses[0]} serves {len(jobs)} jobs - "
            f"allowed: {', '.join(jobs)} - do: --job {jobs[0]}"
        )
    if not jobs:
        raise PeerLost(
            f"no job runs at {addresses[0]} - allowed: a running job - do: dlp train ... "
            f"cluster.boxes=[{','.join(addresses)}]"
        )
    return Place.given(addresses, options.secret_file, options.job or jobs[0], options.ca)


def _check(config: dict[str, Any]) -> None:
    """Refuse a job that nobody can join."""
    name = config["rule"]["name"]
    if not find_rule(name).elastic:
        allowed = ", ".join(name for name, cls in rules().items() if cls.elastic)
        raise UsageError(
            f"the job trains under rule={name}, whose number of workers is fixed - allowed: "
            f"{allowed} - do: stop it and go on with more: dlp train ... workers=N resume=auto"
        )
    if config.get("stages", 1) > 1:
        raise UsageError(
            f"the job trains with stages={config['stages']}, whose workers belong together - "
            "allowed: stages=1 - do: stop it and go on with more: dlp train ... resume=auto"
        )
    if local.in_process(config):
        raise UsageError(
            "the job has its box inside its only process - allowed: boxes that others reach - do: "
            "start it with cluster.transport=shm"
        )


def _enter(place: Place, count: int, folder: str) -> tuple[dict[str, Any], int, int]:
    """Take ranks in the job; return its settings for this host, its size, the first rank."""
    cluster = Cluster(
        place.addresses, place.name, place.secret.encode(), START_S, place.replicas, place.ca
    )
    try:
        told = cluster.lookup(SETTINGS)
        _check({**told["settings"], "workers": 0})
        given = cluster.counter("minibatch").value
        if given >= told["total"] or cluster.counter("stop").value:
            raise PeerLost(
                f"job {place.name} is ending: {given} of {told['total']} minibatches are given out "
                "- allowed: a job with work left - do: start another"
            )
        first = cluster.enrol(count)
    finally:
        cluster.close()
    print(f"dlp: {count} worker(s) from rank {first} join job {place.name} at minibatch {given} "
          f"of {told['total']}", flush=True)  # fmt: skip
    return _settings(told, place, count, folder), int(told["workers"]), first


def _settings(told: dict[str, Any], place: Place, count: int, folder: str) -> dict[str, Any]:
    """Return the job's settings as they are for workers of this host."""
    settings: dict[str, Any] = told["settings"]
    os.environ[wire.SECRET] = place.secret
    here = all(_here(address) for address in place.addresses)
    where = {"boxes": place.addresses, "job": place.name, "ca": place.ca, "secret_file": ""}
    return {
        **settings,
        "cluster": {**settings["cluster"], **where},
        "run": {**settings["run"], "dir": folder or settings["run"]["dir"]},
        "workers": count + (int(told["workers"]) if here else 0),
        "resume": "",
    }


def _here(address: str) -> bool:
    return address.startswith("shm:") or urlsplit(address).hostname in HERE


# -- the workers -------------------------------------------------------------------------------


class Crew:
    """The workers of one ``dlp join``.

    Args:
        config: the job's settings; ``workers`` of them share this host.
        size: how many workers began the job.
    """

    def __init__(self, config: dict[str, Any], size: int) -> None:
        self.config, self.size = config, size
        self.workers: list[local.Worker] = []
        self.asked = False

    def run(self, ranks: range) -> int:
        """Start a worker for each rank, and wait for all; SIGTERM and Ctrl-C ask them to leave."""
        with tempfile.TemporaryDirectory() as home, job.on_signals(self.leave):
            path = Path(home) / job.CONFIG
            path.write_text(json.dumps(self.config))
            try:
                self.workers += [self._start(path, rank, ranks[0]) for rank in ranks]
                self._watch()
            finally:
                job.stop([worker.process for worker in self.workers], signal.SIGTERM)
        return self._code()

    def leave(self, number: int) -> None:
        """Ask all workers to leave: they finish their minibatch first."""
        self.asked = True
        job.send([worker.process for worker in self.workers], signal.SIGTERM)

    def _start(self, path: Path, rank: int, first: int) -> local.Worker:
        own = {"RANK": rank, "SIZE": self.size, "LOCAL_RANK": rank - first,
               "LOCAL_SIZE": self.config["workers"]}  # fmt: skip
        env = {**os.environ, **job.variables(self.config), LATE: "1"}
        env |= {f"DLP_{name}": str(value) for name, value in own.items()}
        try:
            log = job.folder(self.config) / f"rank-{rank}.log"
            return local.Worker(rank, local.logged(path, env, log), log)
        except OSError as error:
            raise EnvironmentMissing(
                f"{error.filename} cannot be written: {error.strerror} - allowed: a folder for the "
                "logs - do: --dir FOLDER"
            ) from None

    def _watch(self) -> None:
        """Wait for all workers and say how each of them ends; a second Ctrl-C kills them."""
        left = list(self.workers)
        while left:
            try:
                time.sleep(0.05)
            except KeyboardInterrupt:
                if self.asked:
                    raise
                self.leave(signal.SIGINT)
            for worker in [one for one in left if one.process.poll() is not None]:
                left.remove(worker)
                self._say(worker)

    def _say(self, worker: local.Worker) -> None:
        code = worker.process.returncode
        if code == 0:
            print(f"dlp: {worker.last_line()}", flush=True)
        elif code < 0 and not (self.asked and code in QUIET):
            name = signal.Signals(-code).name
            line = f"dlp: worker {worker.rank} was killed ({name}); the others go on"
            print(line, file=sys.stderr, flush=True)

    def _code(self) -> int:
        """Return 0 when somebody worked to the end or left; raise the error of who failed."""
        ends = [(worker.process.returncode, worker) for worker in self.workers]
        ends = [(0, worker) if self.asked and code in QUIET else (code, worker)
                for code, worker in ends]  # fmt: skip
        for code, worker in ends:
            if code > 0:
                text = worker.error() or f"worker {worker.rank} failed: {worker.last_line()}"
                raise job.failure(code, f"{text} [worker {worker.rank}, {worker.log}]")
        if all(code < 0 for code, _ in ends):
            raise PeerLost(
                f"all {len(ends)} workers that joined were killed; the job goes on without them - "
                "allowed: any number - do: dlp join again"
            )
        return 0
