"""The verb ``doctor``: what this machine, or several, have, what is missing, and how to get it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dlplatform.config import ClusterConfig
from dlplatform.memorybox.options import Options
from launch.doctor import machine, mpi
from launch.doctor.finding import Finding

MISSING = 3
REPORTS: Sequence[Callable[[], Iterator[Finding]]] = (
    machine.python, machine.kernels, mpi.report, machine.memory, machine.processors,
    machine.devices, machine.rdma, machine.slurm, machine.network,
)  # fmt: skip


def findings() -> list[Finding]:
    """Return everything that is found on this machine."""
    return [finding for report in REPORTS for finding in report()]


def main(argv: Sequence[str] = ()) -> int:
    """Print the report; return 3 when something required is missing, else 0."""
    parser = Options(prog="dlp doctor", add_help=False, allow_abbrev=False)
    parser.add_argument("--hosts", default="")
    parser.add_argument("--agent", default=ClusterConfig().agent)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(list(argv))
    if given.hosts:
        return _hosts(given.hosts, given.agent, given.json)
    found = findings()
    if given.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        _show([("", one) for one in found])
    return _verdict(found, "this machine can train", given.json)


def _hosts(names: str, agent: str, as_json: bool) -> int:
    from launch.doctor import hosts
    from launch.ssh import Hosts

    listed = [name for name in names.split(",") if name]
    cluster = {"hosts": listed, "agent": agent}
    report = hosts.examine(Hosts.of({"cluster": cluster, "workers": len(listed)}))
    links = hosts.link_findings(report.links)
    if as_json:
        found = {host: [asdict(one) for one in lines] for host, lines in report.findings.items()}
        print(json.dumps({"hosts": found, "links": [asdict(one) for one in links]}, indent=1))
    else:
        _show(_gathered(report.findings) + [("", one) for one in links])
    everything = [one for lines in report.findings.values() for one in lines] + links
    return _verdict(everything, f"{len(listed)} host(s) can train together", as_json)


def _gathered(findings: dict[str, list[Finding]]) -> list[tuple[str, Finding]]:
    """Return lines with the hosts that they hold for: one line where all say the same."""
    rows: dict[Finding, list[str]] = {}
    for host, lines in findings.items():
        for one in lines:
            rows.setdefault(one, []).append(host)
    order = list(dict.fromkeys(one.what for lines in findings.values() for one in lines))
    everywhere = len(findings)
    return [
        ("all" if len(hosts) == everywhere else ", ".join(hosts), one)
        for one, hosts in sorted(rows.items(), key=lambda row: order.index(row[0].what))
    ]


def _show(rows: list[tuple[str, Finding]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    several = any(where for where, _ in rows)
    heads = ["", "what", *(["where"] if several else []), "found", "do this"]
    table = Table(*heads, box=None, pad_edge=False)
    for where, one in rows:
        style = "green" if one.good else "bold red" if one.required else "yellow"
        remedy = "" if one.good else one.remedy
        cells: list[Any] = [Text(one.mark, style), one.what, *([where] if several else [])]
        table.add_row(*cells, Text(one.value), Text(remedy))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def _verdict(found: Sequence[Finding], well: str, quiet: bool) -> int:
    missing = dict.fromkeys(one.what for one in found if one.required and not one.good)
    if not quiet:
        print(f"missing: {', '.join(missing)}" if missing else well)
    return MISSING if missing else 0
