"""``dlp doctor --hosts a,b,c``: the report of every host, their clocks, the links between."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from launch.doctor.finding import Finding
from launch.doctor.probe import TOKEN
from launch.ssh import Hosts, agent_of

CLOCKS = 9
SKEW_S = 0.5
"""Clocks further apart than that make logs and file times misleading."""
SAME = ("Python", "torch", "dlplatform", "kernels", "MPI")
"""What ought to be the same on all hosts."""


class Doctor:
    """The probe on one host, asked line by line.

    Args:
        host: its name.
        hosts: how to start something there.
    """

    def __init__(self, host: str, hosts: Hosts) -> None:
        self.host, self.lost = host, ""
        words = [sys.executable, "-m", "launch.doctor.probe"]
        with agent_of(hosts):
            self.process = subprocess.Popen(
                hosts.line(host, words, {}), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write("no secret\n")

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Return an answer; an empty one when the host is out of reach."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.lost:
            return {}
        line = ""
        with suppress(OSError):
            self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        _, said = self.process.communicate()
        self.lost = (said.strip().splitlines() or ["it hung up"])[-1]
        return {}

    def skew(self) -> float:
        """Return how many seconds its clock is ahead of the one here."""
        best = (float("inf"), 0.0)
        for _ in range(CLOCKS):
            begin = time.time()
            there = self.ask("clock").get("time", begin)
            end = time.time()
            best = min(best, (end - begin, there - (begin + end) / 2))
        return best[1]

    def close(self) -> None:
        """Let the probe end."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@dataclass
class Report:
    """What all hosts said."""

    findings: dict[str, list[Finding]]
    """By host."""
    links: list[tuple[str, str, dict[str, Any]]]
    """From, to, and what was measured."""


def examine(hosts: Hosts) -> Report:
    """Ask every host, then let each of them reach for the others."""
    token = secrets.token_hex(TOKEN // 2)
    with ExitStack() as stack:
        doctors = [Doctor(host, hosts) for host in hosts.names]
        for doctor in doctors:
            stack.callback(doctor.close)
        with ThreadPoolExecutor(len(doctors)) as pool:  # each takes seconds: it starts MPI
            answers = pool.map(lambda doctor: doctor.ask("hello", token=token), doctors)
            told = dict(zip(hosts.names, answers, strict=True))
        findings = {doctor.host: _of(doctor, told[doctor.host]) for doctor in doctors}
        links = [
            (a.host, b.host, a.ask("reach", host=b.host, port=told[b.host]["port"]))
            for a in doctors for b in doctors if a is not b and not a.lost and not b.lost
        ]  # fmt: skip
    _compare(findings)
    return Report(findings, links)


def _of(doctor: Doctor, told: dict[str, Any]) -> list[Finding]:
    if not told:
        remedy = "see that AGENT HOST COMMAND works by hand, and that the platform is there"
        return [Finding("host", f"out of reach: {doctor.lost}", False, True, remedy)]
    skew = doctor.skew()
    clock = Finding(
        "clock", f"{1e3 * skew:+.1f} ms", abs(skew) < SKEW_S, False, "start an NTP client there"
    )
    return [Finding("host", told["node"]), clock, *(Finding(**one) for one in told["findings"])]


def _compare(findings: dict[str, list[Finding]]) -> None:
    """Mark what ought to be the same everywhere, and is not."""
    for what in SAME:
        values = {one.value for found in findings.values() for one in found if one.what == what}
        if len(values) > 1:
            for found in findings.values():
                found[:] = [
                    Finding(what, one.value, False, what in ("torch", "dlplatform", "kernels"),
                            f"install the same {what} on all hosts")
                    if one.what == what else one
                    for one in found
                ]  # fmt: skip


def link_findings(links: Sequence[tuple[str, str, dict[str, Any]]]) -> list[Finding]:
    """Return a line for each link."""
    found = []
    for a, b, seen in links:
        if "error" in seen or not seen:
            remedy = f"let {a} open a connection to {b}: names, routes, firewalls"
            text = seen.get("error", "no answer")
            found.append(Finding(f"{a} to {b}", text, False, True, remedy))
        else:
            text = f"{1e3 * seen['rtt_s']:.2f} ms there and back, {8e-9 * seen['rate']:.2f} Gbit/s"
            found.append(Finding(f"{a} to {b}", text))
    return found
