"""The options of ``dlp box``: their words, what they may be, and what they mean for a box."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from dlplatform.errors import UsageError
from dlplatform.memorybox.box import CAN, Limits
from dlplatform.memorybox.memory import nameless_file
from dlplatform.memorybox.namespace import COUNTERS, LINE

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
ABOUT = """Run a memory box: RAM that the workers of training jobs share. It prints one line of JSON
with its address, then serves until SIGTERM, Ctrl-C or dlp box drain. Workers reach it with
cluster.boxes=[ADDRESS] cluster.secret_file=FILE."""
VERBS = """look after a running box (each takes --secret-file, and --ca for tls://):
  dlp box status URI [--json]   what it holds: jobs, workers, memory, traffic
  dlp box top URI... [--once]   the same, live, for several boxes; q ends it
  dlp box drain URI             no new jobs; the box ends when its last job has gone
  dlp box snapshot URI          write a snapshot of every job now (needs --snapshot)

examples:
  dlp box --bind tcp://10.0.0.1:7000 --secret-file box.secret
  dlp box --bind shm://box0 --bind tcp://10.0.0.1:7000 --quota 2G --jobs 8 --keep 60
  dlp box --bind verbs://10.0.0.1:7000 --secret-file box.secret
  dlp box --bind tls://10.0.0.1:7000 --tls-cert box.pem --tls-key box.key
  dlp box --bind tcp://10.0.0.1:7000 --snapshot /var/lib/box --journal
  dlp box --bind tcp://10.0.0.1:7000 --metrics 127.0.0.1:9400 --log -"""


class Options(argparse.ArgumentParser):
    """Options whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the options."""
        raise UsageError(f"{self.prog}: {message} - allowed: see --help - do: {self.prog} --help")


def size(text: str) -> int:
    """Return bytes written as 512M or 2G."""
    digits, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    if not digits.isdecimal() or not int(digits):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 2G")
    return int(digits) * unit


def seconds(text: str) -> float:
    """Return a number of seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def count(text: str) -> int:
    """Return a number, 1 or more."""
    if not text.isdecimal() or not 1 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """Return N and M of N/M, a part of a whole."""
    number, _, whole = text.partition("/")
    if not (number.isdecimal() and whole.isdecimal() and int(number) < int(whole)):
        raise argparse.ArgumentTypeError(f"{text!r} is not N/M with N from 0 below M")
    return int(number), int(whole)


OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "where": {
        "--bind": {
            "action": "append", "required": True, "metavar": "URI",
            "help": "shm://NAME (this host), or tcp://, tls:// or verbs://HOST:PORT (port 0: any "
            "free one); may be repeated",
        },
        "--secret-file": {
            "default": "", "metavar": "FILE",
            "help": "secret shared with the workers; made if missing (~/.dlplatform/secret)",
        },
        "--tls-cert": {
            "default": "", "metavar": "FILE",
            "help": "PEM file with the certificate for tls:// (workers: cluster.ca=FILE)",
        },
        "--tls-key": {"default": "", "metavar": "FILE", "help": "PEM file with its key"},
        "--memory": {
            "default": "/dev/shm", "metavar": "DIR",
            "help": "where its memory is: a tmpfs folder, or memfd (default: /dev/shm)",
        },
        "--numa": {
            "type": part, "default": (0, 0), "metavar": "N/M",
            "help": "box N (from 0) of M on this host, which share its NUMA nodes out",
        },
    },
    "jobs": {
        "--quota": {
            "type": size, "metavar": "SIZE",
            "help": "most memory of one job, such as 512M or 2G (default: no limit)",
        },
        "--jobs": {
            "type": count, "metavar": "N",
            "help": "most jobs at a time; further ones are refused (default: no limit)",
        },
        "--grace": {
            "type": seconds, "default": 0.8, "metavar": "SECONDS",
            "help": "a worker whose connection broke may come back so long (default: 0.8)",
        },
        "--keep": {
            "type": seconds, "default": 0.0, "metavar": "SECONDS",
            "help": "keep what a job leaves so long after its last worker has gone (default: 0)",
        },
        "--plain": {
            "action": "store_true",
            "help": "a box without accumulate function: workers read, add and write",
        },
    },
    "lasting": {
        "--snapshot": {
            "default": "", "metavar": "DIR",
            "help": "write snapshots of every job to a folder, and begin with those in it",
        },
        "--every": {
            "type": seconds, "metavar": "SECONDS", "help": "between snapshots (default: 30)",
        },
        "--journal": {
            "action": "store_true",
            "help": "also log every update there: nothing acknowledged is lost when the box dies",
        },
    },
    "watching": {
        "--metrics": {
            "default": "", "metavar": "HOST:PORT",
            "help": "serve figures to Prometheus at http://HOST:PORT/metrics, to whoever asks",
        },
        "--log": {
            "default": "", "metavar": "FILE",
            "help": "append events to a file as lines of JSON; -: to standard output",
        },
        "--lifeline": {
            "action": "store_true",
            "help": "end when standard input is closed and no worker is connected",
        },
    },
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return the options of ``dlp box``."""
    p = Options(
        prog="dlp box", description=ABOUT, epilog=VERBS, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for title, options in OPTIONS.items():
        group = p.add_argument_group(title)
        for name, settings in options.items():
            group.add_argument(name, **settings)
    return p


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together."""
    encrypted = [uri for uri in options.bind if uri.startswith("tls:")]
    pair = bool(options.tls_cert), bool(options.tls_key)
    for wrong, what, allowed, do in (
        (options.journal and not options.snapshot, "--journal without --snapshot",
         "a journal beside snapshots", "add --snapshot DIR"),
        (bool(encrypted) and not all(pair), f"--bind {' '.join(encrypted)} without a certificate",
         "tls:// with --tls-cert and --tls-key", "give both files, or write tcp://"),
        (any(pair) and not encrypted, "--tls-cert or --tls-key without --bind tls://HOST:PORT",
         "both for tls://", "write tls:// instead of tcp://"),
        (options.every is not None and not (options.snapshot and options.every),
         f"--every {options.every} without --snapshot, or 0", "seconds above 0 with --snapshot",
         "add --snapshot DIR"),
    ):  # fmt: skip
        if wrong:
            raise UsageError(f"dlp box: {what} - allowed: {allowed} - do: {do}")


def limits_of(options: argparse.Namespace) -> Limits:
    """Return what a box with these options allows."""
    can = ("map",) if options.plain else CAN
    os.close(nameless_file(options.memory, COUNTERS * LINE))  # a bad folder is told now, not later
    return Limits(
        options.memory, options.quota or 0, options.jobs or 0, options.grace, options.keep, can
    )
