"""Pages that stay true: links, paths, names, settings, commands, docstrings, and a few words."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from dlplatform import cli, config
from dlplatform.rules.rule import rules
from dlplatform.task import tasks
from launch import boxes
from launch.slurm.settings import SlurmConfig

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
NAMED = re.compile(r"^([\w./-]+\.(?:py|c|h)):([\w.]+)$")
FILE = re.compile(r"^\.?[\w-]+(/[\w.-]+)+/?$")
# Spelled in halves, so that this file does not contain them.
TOOLS = [
    "cl" + "aude",
    "anth" + "ropic",
    "chat" + "gpt",
    "cop" + "ilot",
    "open" + "ai",
    "gem" + "ini",
]
TOOLS += ["language mo" + "del", "a" + "i-generated", "a" + "i assistant"]
EXAMPLES = ("task=toy/spirals", "rule=blend")  # test_examples.py installs and trains them
PLACES = ["/wo" + "rk/", "/tmp/" + "v/"]


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text()) if language in languages]


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ +(.*)$", prose(page), re.M)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.replace(" ", "-") for head in plain}


def test_every_link_leads_somewhere(pages: list[Path], root: Path) -> None:
    wrong = []
    for page in pages:
        for link in LINK.findall(prose(page)):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = page.parent / path if path else page
            missing = not target.exists() or (
                anchor and target.suffix == ".md" and anchor not in anchors(target)
            )
            if missing:
                wrong.append(f"{page.relative_to(root)}: {link}")
    assert not wrong, "\n".join(wrong)


def test_every_quoted_path_exists(pages: list[Path], root: Path) -> None:
    tops = {path.name for path in root.iterdir()} - {"outputs", "multirun"}
    wrong = []
    for page in pages:
        for word in QUOTED.findall(prose(page)):
            path = word.partition(":")[0]
            if FILE.match(path) and path.split("/")[0] in tops and not (root / path).exists():
                wrong.append(f"{page.relative_to(root)}: {word}")
    assert not wrong, "\n".join(wrong)


def defines(path: Path, name: str) -> bool:
    """Tell whether a file defines ``name``, ``Class`` or ``Class.method``."""
    if path.suffix != ".py":
        return re.search(rf"\b{re.escape(name)}\(", path.read_text()) is not None
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in body if isinstance(node, kinds) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


def test_every_quoted_name_is_defined_where_it_says(pages: list[Path], root: Path) -> None:
    wrong, seen = [], 0
    for page in pages:
        for word in QUOTED.findall(prose(page)):
            if (match := NAMED.match(word)) and (root / match[1]).exists():
                seen += 1
                if not defines(root / match[1], match[2]):
                    wrong.append(f"{page.relative_to(root)}: {word}")
    assert seen > 20
    assert not wrong, "\n".join(wrong)


def test_the_readme_dives_into_the_code_with_six_links(root: Path) -> None:
    dive = (root / "README.md").read_text().partition("## Dive into the code")[2]
    links = LINK.findall(dive.partition("\n## ")[0])
    assert len(links) == 6
    assert all((root / link).is_file() for link in links)


# -- commands ---------------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """Return the dlp commands of a page, without their launcher."""
    found = []
    for block in blocks(page, "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            # Up to the first dlp there may only be a launcher with its options.
            if "dlp" in words and words[0] in ("dlp", "mpirun", "torchrun"):
                found.append(words[words.index("dlp") + 1 :])
    return found


def check_train(words: list[str]) -> int:
    """Run ``dlp train`` or ``dlp submit`` up to the point where it would start something."""
    for word in words:
        if word.startswith(("cluster.secret_file=", "cluster.ca=")):
            Path(word.partition("=")[2]).touch()
        if word.startswith("resume=") and word != "resume=auto":
            Path(word.partition("=")[2]).mkdir(parents=True)
    launched = ["launcher=mpirun"] if "transport=mpi" in words else []  # its mpirun was cut off
    return cli.main([*words, *launched, "--dry-run"])


@pytest.mark.timeout(300)
def test_every_dlp_command_of_the_pages_is_understood(
    pages: list[Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen, wrong = set(), []
    for page in pages:
        if page.parent.name == "benchmarks":  # measured by another revision, perhaps
            continue
        for words in commands(page):
            line = shlex.join(["dlp", *words])
            verb = words[0] if words else ""
            if line in seen or any(word in words for word in EXAMPLES):
                continue
            seen.add(line)
            if verb == "box":
                boxes.understand(words[1:])
            elif verb in ("train", "submit") and not {"--cfg", "--help", "--dry-run"} & set(words):
                if check_train(words):
                    wrong.append(f"{page.relative_to(root)}: {line}")
            elif not verb.startswith("-") and verb not in cli.VERBS:
                wrong.append(f"{page.relative_to(root)}: {line}")
    assert len(seen) > 5
    assert not wrong, "\n".join(wrong)


# -- settings ---------------------------------------------------------------------------------


def default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return value or '""' if isinstance(value, str) else json.dumps(value)


def table(cls: type, prefix: str, skip: tuple[str, ...] = ()) -> str:
    """Return the settings of a dataclass as a table of markdown."""
    texts = config.describe(cls)
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(cls):
        text = texts.get(field.name, "").replace("``", "`").replace("None", "null")
        if field.name not in skip:
            lines.append(f"| `{prefix}{field.name}` | `{default(field)}` | {text} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    skip = ("task", "rule", "cluster", "run", "pipeline", "slurm")
    found = {
        "the job": table(config.Config, "", skip),
        "run.*": table(config.RunConfig, "run."),
        "cluster.*": table(config.ClusterConfig, "cluster."),
        "pipeline.*": table(config.PipelineConfig, "pipeline."),
        "zoo/digits": table(tasks()["zoo/digits"], "task.", ("seed",)),
    }
    with_fields = {name: cls for name, cls in rules().items() if dataclasses.fields(cls)}
    ours = {n: c for n, c in with_fields.items() if c.__module__.startswith("dlplatform.")}
    return found | {name: table(cls, "rule.") for name, cls in ours.items()}


def test_the_manual_lists_every_setting_as_it_is(root: Path) -> None:
    text = (root / "docs" / "manual_training.md").read_text()
    missing = [f"{name}\n{rows}" for name, rows in tables().items() if rows not in text]
    assert not missing, "docs/manual_training.md lacks these tables:\n\n" + "\n\n".join(missing)


def test_the_page_of_tasks_lists_every_task_as_it_is(root: Path) -> None:
    from launch.help import first_line, size

    text = (root / "docs" / "tasks.md").read_text()
    rows = []
    for name, cls in tasks().items():
        if cls.__module__.startswith("trainers."):
            score, data = f"{cls.primary} {cls.expected}", config.describe(cls).get("data", "-")
            words = (f"`{name}`", first_line(cls), size(cls.parameters), score, data, cls.source)
            rows.append(f"| {' | '.join(words)} |")
    head = "| task | what it is | size | test score | your data | source |"
    table = "\n".join([head, "| --- | --- | ---: | --- | --- | --- |", *rows])
    assert rows and table in text, f"docs/tasks.md lacks this table:\n\n{table}"


def test_the_manual_of_slurm_lists_its_settings(root: Path) -> None:
    assert table(SlurmConfig, "slurm.") in (root / "docs" / "manual_slurm.md").read_text()


def test_the_manual_lists_every_exit_code(root: Path) -> None:
    from dlplatform import errors
    from launch import help

    text = (root / "docs" / "manual_training.md").read_text()
    kinds = [c for c in vars(errors).values() if isinstance(c, type)]
    codes = {c.exit_code for c in kinds if issubclass(c, errors.PlatformError)} | {0, 130}
    assert codes == {int(code) for code, _ in help.CODES}
    assert not [code for code in codes if f"| {code} |" not in text]


# -- docstrings and words ---------------------------------------------------------------------


def public(body: list[ast.stmt], prefix: str) -> list[str]:
    """Return what is public in a body and has no docstring."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(f"{prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                found += public(node.body, f"{prefix}{node.name}.")
    return found


def test_everything_public_has_a_docstring(sources: list[Any]) -> None:
    wrong = []
    for source in sources:
        if not ast.get_docstring(source.tree):
            wrong.append(source.name)
        wrong += public(source.tree.body, f"{source.name}: ")
    assert not wrong, "\n".join(wrong)


def test_no_page_names_a_tool_or_this_machine(texts: list[Path], root: Path) -> None:
    wrong = []
    for path in texts:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            low = line.lower()
            bad = [w for w in TOOLS if re.search(rf"\b{re.escape(w)}\b", low)]
            bad += [w for w in PLACES if re.search(rf"(?<![\w.$}}]){re.escape(w)}", line)]
            wrong += [f"{path.relative_to(root)}:{number}: {word}" for word in bad]
    assert not wrong, "\n".join(wrong)
