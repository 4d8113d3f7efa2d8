"""The script of a job: a template that a site can edit, filled with what the job asks for."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dlplatform.errors import EnvironmentMissing, UsageError, closest
from dlplatform.rules.rule import find_rule
from launch.slurm import allocation
from launch.slurm.settings import SlurmConfig, spread

HOLE = re.compile(r"\{\{(\w+)\}\}")
LOG, SCRIPT = "slurm.log", "slurm.sh"
MOST_NAME = 60
INDEX = "$SLURM_ARRAY_TASK_ID"


def write(configs: Sequence[dict[str, Any]], folder: Path, array: bool = False) -> str:
    """Return the script of a job, or of several as one array.

    Args:
        configs: the settings of each.
        folder: the run folder; of an array, the one in which each job has a numbered folder.
        array: whether it is one.

    Raises:
        UsageError: the template has a place that nothing fills, or the jobs do not fit together.
    """
    config = _widest(configs)
    asked = SlurmConfig(**config["slurm"])
    own, each = (f"/{INDEX}", "/%a") if array else ("", "")
    log = str(folder).replace("%", "%%") + f"{each}/{LOG}"
    options = [f'--output="{log}"', *geometry(config, asked), *limits(configs, asked)]
    if array:
        most = f"%{asked.at_once}" if asked.at_once else ""
        options.append(f"--array=0-{len(configs) - 1}{most}")
    known = {
        "options": "\n".join(f"#SBATCH {one}" for one in [*options, asked.options] if one),
        "setup": asked.setup.strip(),
        "folder": shlex.quote(str(folder)) + own,
        "steps": "\n".join(f"#   {line}" for line in _steps(config, asked, str(folder) + own)),
        "python": shlex.quote(sys.executable),
        "restarts": str(asked.restarts),
    }
    return HOLE.sub(lambda hole: _fill(hole[1], known, asked.template), template(asked.template))


def _widest(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return settings that have room for each of several jobs: an array gives all the same."""
    first = configs[0]["slurm"]
    for config in configs:
        for key, value in config["slurm"].items():
            if key not in ("nodes", "cpus") and value != first[key]:
                raise UsageError(
                    f"slurm.{key}={value} beside {first[key]} in one sweep - allowed: one value - "
                    f"do: a sweep for each slurm.{key}"
                )
    most = {key: max(config["slurm"][key] for config in configs) for key in ("nodes", "cpus")}
    counts = {key: max(config[key] for config in configs) for key in ("workers", "boxes")}
    return {**configs[0], **counts, "slurm": {**first, **most}}


def _steps(config: dict[str, Any], asked: SlurmConfig, folder: str) -> list[str]:
    """Return what starts in the job, with stand-ins for the names of nodes."""
    nodes = asked.box_nodes
    nodes += [f"NODE{n}" for n in range(len(nodes), spread(asked, int(config["boxes"])))]
    return allocation.plan({**config, "run": {**config["run"], "dir": folder}}, nodes)


def template(path: str) -> str:
    """Return a template's text; without a path, that of the platform's own."""
    try:
        if path:
            return Path(path).read_text()
        return (files("launch") / "templates" / "slurm.sh").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentMissing(
            f"template {path or 'launch/templates/slurm.sh'} cannot be read: {error} - allowed: a "
            "text file - do: correct slurm.template=FILE"
        ) from None


def geometry(config: dict[str, Any], asked: SlurmConfig) -> list[str]:
    """Return the options that say on how many nodes and processors the workers are."""
    workers, nodes = int(config["workers"]), spread(asked, int(config["boxes"]))
    each = math.ceil(workers / asked.nodes)
    options = [f"--nodes={nodes}", f"--ntasks-per-node={each}", f"--cpus-per-task={asked.cpus}"]
    if nodes == asked.nodes:
        options.insert(1, f"--ntasks={workers}")
    if asked.box_nodes:
        options.append(f"--nodelist={','.join(asked.box_nodes)}")
    return options


def limits(configs: Sequence[dict[str, Any]], asked: SlurmConfig) -> list[str]:
    """Return the options that say where, how long and what happens at the end."""
    rules = list(dict.fromkeys(str(config["rule"]["name"]) for config in configs))
    name = f"{configs[0]['task']['name']}-{'-'.join(rules)}".replace("/", "-")
    given = {"partition": asked.partition, "account": asked.account, "time": asked.time}
    return [
        f"--job-name={name[:MOST_NAME]}",
        *(f"--{key}={value}" for key, value in given.items() if value),
        f"--signal=B:USR1@{asked.signal_s}",
        "--requeue" if asked.restarts else "--no-requeue",
        "--open-mode=append",
        # A rule that outlives a worker outlives a node, too.
        *(["--no-kill"] if all(find_rule(name).survives for name in rules) else []),
    ]


def _fill(name: str, known: dict[str, str], path: str) -> str:
    if name not in known:
        raise UsageError(
            f"slurm.template={path} has {{{{{name}}}}}{closest(name, known)} - allowed: "
            f"{', '.join(known)} - do: correct it"
        )
    return known[name]
