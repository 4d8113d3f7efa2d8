"""Hydra composes the dataclasses of ``config.py``; its errors become one line of ours."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.utils import run_job
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlplatform.config import CHECKS, Config, named, run_folder, validate
from dlplatform.errors import PlatformError, UsageError, closest
from dlplatform.rules.rule import find_rule, rules
from dlplatform.task import find_task, tasks
from dlplatform.transports.mpi.ranks import deal
from launch.slurm import settings as slurm

ROOT = "train"
PLUGINS = {
    "optuna": "hydra-optuna-sweeper",
    "submitit": "hydra-submitit-launcher",
    "joblib": "hydra-joblib-launcher",
}
"""Who brings Hydra's further sweepers and launchers."""
KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def register() -> None:
    """Tell Hydra the schema, all tasks and all rules."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="slurm", name="normal", node=slurm.SlurmConfig)
    for name, cls in rules().items():
        _tell("rule", name, name, cls)
    for name, task in tasks().items():
        family, _, leaf = name.rpartition("/")
        _tell(f"task/{family}" if family else "task", leaf, name, task, package="task")
    OmegaConf.register_new_resolver("dlp.plain", lambda name: name.replace("/", "-"), replace=True)
    OmegaConf.register_new_resolver("dlp.folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("dlp.needed", needed, replace=True)


@cache
def _tell(group: str, leaf: str, name: str, cls: type, package: str | None = None) -> None:
    """Tell Hydra of a rule or a task, once: all of them take a sixth of a second."""
    ConfigStore.instance().store(leaf, named(name, cls), group=group, package=package)


def needed(key: str, what: str) -> None:
    """Refuse a recipe whose ``${dlp.needed:KEY,WHAT}`` has not been replaced by a value.

    Hydra's ``???`` does not do: where the task has a default it is taken instead.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"{key} is missing - allowed: {what}, which this recipe is made for - do: {key}={what}"
    )


@dataclass(frozen=True)
class Swept:
    """One setting with several values."""

    line: str
    """As Hydra's sweeper is to read it."""
    values: tuple[str, ...]
    """Each of them as an override; of an interval, its ends."""
    counted: bool = True
    """Whether these are all values: which ones of an interval are tried, only its sweeper knows."""

    @property
    def key(self) -> str:
        """Return the name of the setting."""
        return self.line.partition("=")[0]


@dataclass(frozen=True)
class Sweep:
    """A command line's fixed overrides, and its swept settings."""

    fixed: tuple[str, ...]
    swept: tuple[Swept, ...]

    def jobs(self) -> list[list[str]]:
        """Return the overrides of every job, in the order Hydra's own sweeper runs them.

        There are none where only the sweeper knows.
        """
        if not all(one.counted for one in self.swept):
            return []
        choices = itertools.product(*(one.values for one in self.swept))
        return [[*self.fixed, *choice] for choice in choices]

    def samples(self) -> list[list[str]]:
        """Return jobs in which every swept value occurs: enough to find a wrong one."""
        first = [one.values[0] for one in self.swept]
        found = [[*self.fixed, *first]]
        for place, one in enumerate(self.swept):
            for value in one.values[1:]:
                found.append([*self.fixed, *first[:place], value, *first[place + 1 :]])
        return found


def parse(overrides: Iterable[str]) -> Sweep:
    """Split overrides into fixed and swept ones; a later one replaces an earlier one.

    Raises:
        UsageError: a word that is not ``key=value``.
    """
    latest: dict[str, Override] = {}
    for word in overrides:
        one = _parse_one(word)
        latest.pop(one.get_key_element(), None)
        latest[one.get_key_element()] = one
    fixed = [o.input_line or "" for o in latest.values() if not o.is_sweep_override()]
    return Sweep(tuple(fixed), tuple(_swept(o) for o in latest.values() if o.is_sweep_override()))


def _parse_one(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except (OverrideParseException, HydraException) as error:
        raise UsageError(
            f"{word!r} is not a setting - allowed: key=value ({_first(error)}) - do: quote values "
            "with blanks or brackets, see dlp train --help"
        ) from None


def _swept(override: Override) -> Swept:
    key, line = override.get_key_element(), override.input_line or ""
    given: Any = override.value()
    if not override.is_discrete_sweep():
        return Swept(line, (f"{key}={given.start}", f"{key}={given.end}"), counted=False)
    if isinstance(given, Glob):
        known = {"rule": list(rules()), "task": list(tasks())}.get(key) or _shipped(key)
        if not (values := given.filter(sorted(known))):
            raise UsageError(
                f"{key}=glob({','.join(given.include)}) matches nothing - allowed: "
                f"{', '.join(known) or 'a group of configurations'} - do: {key}=glob(*)"
            )
        return Swept(f"{key}={','.join(values)}", tuple(f"{key}={value}" for value in values))
    return Swept(line, tuple(f"{key}={value}" for value in override.sweep_string_iterator()))


@contextmanager
def one_line(words: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise about these overrides into a UsageError."""
    try:
        yield
    except PlatformError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_explain(error, words)) from None


def compose(words: list[str], name: str = ROOT, folder: str | None = None) -> DictConfig:
    """Compose one job's configuration, Hydra's own part included.

    Args:
        words: overrides without sweeps.
        name: the primary configuration.
        folder: a further folder of configuration files, or None.
    """
    search = [f"hydra.searchpath=[file://{folder}]"] if folder else []
    with one_line(words), initialize_config_module("configs", version_base="1.3"):
        return hydra_compose(name, [*words, *search], return_hydra_config=True)


def run(composed: DictConfig, job: Callable[[DictConfig], Any]) -> None:
    """Run one job as Hydra does, in the folder it makes; what is composed is not composed again."""
    composed.hydra.mode = RunMode.RUN
    callbacks = Callbacks(composed)
    told: dict[str, Any] = {"config": composed, "config_name": composed.hydra.job.config_name}
    with initialize_config_module("configs", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        callbacks.on_run_start(**told)
        context = HydraContext(config_loader=loader, callbacks=callbacks)
        done = run_job(job, composed, "hydra.run.dir", None, context)
        callbacks.on_run_end(**told, job_return=done)


def settle(composed: DictConfig, workers: int | None = None) -> dict[str, Any]:
    """Return a composed configuration as a validated plain dictionary without Hydra's part.

    Args:
        composed: what Hydra composed.
        workers: the number of ranks that a launcher outside has already started.
    """
    with one_line([]):
        keys = [str(key) for key in composed if key != "hydra"]
        plain = OmegaConf.to_container(
            OmegaConf.masked_copy(composed, keys), resolve=True, throw_on_missing=True
        )
    config = cast(dict[str, Any], plain)
    choose_transport(config, workers)
    if workers is not None:
        config["workers"] = workers
    if config["cluster"]["boxes"]:
        config["boxes"] = len(config["cluster"]["boxes"])
    elif workers is not None and config["cluster"]["transport"] == "mpi":
        config["workers"] -= len(deal([0] * workers, int(config["boxes"])))
    validate(config)
    if config["launcher"] == "slurm":
        slurm.check(config)
    config["cluster"]["job"] = config["cluster"]["job"] or secrets.token_hex(4)
    return config


def choose_transport(config: dict[str, Any], ranks: int | None) -> None:
    """Let ``transport`` decide what ``cluster.transport`` leaves open."""
    cluster, wanted = config["cluster"], config["transport"]
    if wanted != "auto" and cluster["transport"] not in ("auto", wanted):
        raise UsageError(
            f"transport={wanted} and cluster.transport={cluster['transport']} - allowed: one of "
            "them, or the same - do: leave cluster.transport out"
        )
    cluster["transport"] = wanted if wanted != "auto" else cluster["transport"]
    if cluster["transport"] != "mpi":
        return
    for key, usual in (("boxes", []), ("replicas", 0)):
        if cluster[key] != usual:
            raise UsageError(
                f"cluster.{key}={cluster[key]} with transport=mpi, whose boxes live and die with "
                f"their job - allowed: {usual} - do: leave it out, or transport=tcp"
            )
    if ranks is None and config["launcher"] == "local":
        many = int(config["workers"]) + int(config["boxes"])
        raise UsageError(
            "transport=mpi with launcher=local: its boxes are MPI ranks - allowed: mpirun - do: "
            f"launcher=mpirun, or mpirun -n {many} dlp train ... transport=mpi"
        )


def _explain(error: Exception, words: Sequence[str]) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error)
    text, cause = str(error), error.__cause__
    if found := re.match(r"UsageError raised while resolving interpolation: (.+)", text):
        return found[1]
    if found := re.match(r"You must specify '(.+?)'", text):
        group = found[1]
        known = ", ".join(tasks() if group == "task" else rules())
        return f"{group} is missing - allowed: {known} - do: dlp train {group}=NAME"
    if found := re.match(r"Could not override '(.+?)'", text):
        return _no_key(found[1], words)
    if found := re.match(r"Error merging override (\S+)", text):
        return _wrong_type(text.removeprefix("Error merging override "), cause)
    if found := re.match(r"Ambiguous value for argument '(.+?)'\n", text):
        return f"{found[1]} has several values - allowed: one - do: dlp train -m ... to sweep"
    if found := re.match(r"Could not append to config. An item is already at '(.+?)'", text):
        return f"+{found[1]} exists already - allowed: new keys - do: write {found[1]}=VALUE"
    return f"configuration cannot be composed: {_first(error)} - do: dlp train --help"


def _no_option(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file)
    cut = missing.rpartition if missing.startswith("hydra/") else missing.partition
    group, _, name = cut("/")
    try:
        if group == "task":
            find_task(name)
        elif group == "rule":
            find_rule(name)
    except UsageError as known:
        return str(known)
    options = sorted({*map(str, error.options or ()), *_shipped(group)})
    allowed = f". Allowed: {', '.join(options)}" if options else ""
    kind = f"{group}={name}" if name else f"--config-name {group}"
    plugin = next((f" - do: pip install {PLUGINS[one]}" for one in PLUGINS if one in name), "")
    return f"{kind} is not a configuration{closest(name, options)}{allowed}{plugin}"


def _shipped(group: str) -> list[str]:
    """List a group's files, those of its subgroups too, which Hydra leaves out."""
    root = Path(str(files("configs"))) / group
    return [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")]


def _no_key(key: str, words: Sequence[str]) -> str:
    shown = next((word for word in words if word.lstrip("+~").startswith(f"{key}=")), key)
    near = closest(key, _keys(words)) or closest(key.rpartition(".")[2], _keys(words))
    return f"{shown} is not a setting{near}. All settings: dlp train --help"


def _keys(words: Sequence[str]) -> list[str]:
    """List every dotted key that the chosen task and rule have."""
    chosen = dict(word.split("=", 1) for word in words if "=" in word)
    known_tasks, known_rules = tasks(), rules()
    keys = list(_flat(OmegaConf.structured(Config), ""))
    task = known_tasks.get(chosen.get("task", ""))
    rule = known_rules.get(chosen.get("rule", "hybrid"))
    for group, cls in (("task", task), ("rule", rule)):
        if cls is not None:
            keys += _flat(OmegaConf.structured(named(group, cls)), f"{group}.")
    keys += _flat(OmegaConf.structured(slurm.SlurmConfig), "slurm.")
    return [*keys, "experiment", "debug", "sweep", "cluster", "run"]


def _flat(node: DictConfig, prefix: str) -> Iterator[str]:
    for key, value in node.items_ex(resolve=False):
        if isinstance(value, DictConfig) and not value._is_none():
            yield from _flat(value, f"{prefix}{key!s}.")
        else:
            yield f"{prefix}{key!s}"


def _wrong_type(word: str, cause: BaseException | None) -> str:
    key, _, value = word.partition("=")
    text = _first(cause) if cause else "it does not fit"
    if word.startswith("~"):
        key = key.lstrip("~")
        return f"~{key} cannot work - allowed: every setting has a value - do: {key}=VALUE"
    wanted = re.search(r"(?:could not be converted to|is not a valid) (\w+)", text)
    if wanted:
        kind = KINDS.get(wanted[1], wanted[1])
        check = CHECKS.get(key)
        allowed, instead = (check.allowed, check.instead) if check else (kind, "VALUE")
        return f"{key}={value} is not {kind} - allowed: {allowed} - do: {key}={instead}"
    if "not a ListConfig" in text:
        return f"{key}={value} is not a list - allowed: [a,b,...] - do: {key}=[{value}]"
    return f"{key}={value} does not fit: {text} - do: dlp train --help"


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
