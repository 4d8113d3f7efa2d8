"""How large things may be, and what they may not be called (limits of CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path
from typing import Any

FILE, FUNCTION, MEDIAN, NINE_OF_TEN = 400, 80, 12, 40
PARAMETERS, CORE = 6, 7100
TRAINER = range(80, 251)
FEWEST, MOST, LEVELS = 2, 12, 3
ROOMY = {  # one file a noun, a rule, a system
    **{"dlplatform": 24, "memorybox": 33, "rules": 24, "launch": 13},
    **{"blocks": 39, "nets": 30, "data": 32, "synth": 26, "pictures": 18, "scores": 14, "zoo": 26},
}
FAMILIES = ("dlplatform/rules/", "dlplatform/transports/")  # one file each, any number
NAMELESS = {"manager", "handler", "helper", "helpers", "util", "utils"}
TOP = {
    *(".ci", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("README.md", "configs", "dlplatform", "docs", "kernels", "launch", "pyproject.toml"),
    *("scripts", "setup.py", "tests", "trainers"),
}


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def test_the_top_of_the_tree_is_fixed(top: list[str]) -> None:
    assert set(top) == TOP


def test_files_are_short(root: Path, sources: list[Any]) -> None:
    others = [p for name in ("tests", "scripts", "kernels") for p in (root / name).rglob("*.*")]
    paths = [source.path for source in sources]
    paths += [p for p in others if p.suffix in (".py", ".sh", ".c", ".h") and p not in paths]
    paths.append(root / "setup.py")
    counts = {p.relative_to(root).as_posix(): len(p.read_text().splitlines()) for p in paths}
    wrong = [f"{name}: {count} lines" for name, count in counts.items() if count > FILE]
    assert not wrong, "\n".join(wrong)


def test_functions_are_short(sources: list[Any]) -> None:
    lengths = {
        f"{source.name}:{function.lineno} {function.name}": length(function)
        for source in sources
        for function in source.functions()
    }
    wrong = [f"{name}: {count} lines" for name, count in lengths.items() if count > FUNCTION]
    assert not wrong, "\n".join(wrong)
    assert statistics.median(lengths.values()) <= MEDIAN
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= NINE_OF_TEN


def test_constructors_are_narrow(sources: list[Any]) -> None:
    wrong = []
    for source in sources:
        for function in source.functions():
            a = function.args
            count = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) - 1
            if function.name == "__init__" and count > PARAMETERS:
                wrong.append(f"{source.name}:{function.lineno}: {count} parameters")
    assert not wrong, "\n".join(wrong)


def test_the_core_is_small(sources: list[Any]) -> None:
    """Lines of code: without blank lines, comments, docstrings, and the families of plug-ins."""
    core = [s for s in sources if s.package == "dlplatform"]
    core = [s for s in core if not s.name.startswith(FAMILIES)]
    assert sum(code_lines(s) for s in core) <= CORE


def code_lines(source: Any) -> int:
    texts = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate((line.strip() for line in source.text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and n not in texts for n, line in lines)


def test_a_trainer_is_neither_a_stub_nor_a_system(sources: list[Any]) -> None:
    counts = {s.name: len(s.text.splitlines()) for s in sources if s.is_task()}
    wrong = [f"{name}: {count} lines" for name, count in counts.items() if count not in TRAINER]
    assert counts and not wrong, "\n".join(wrong)


def test_folders_are_neither_empty_nor_crowded(root: Path, sources: list[Any]) -> None:
    folders: dict[Path, int] = {}
    for source in sources:
        folders[source.path.parent] = folders.get(source.path.parent, 0) + 1
    parents = {folder.parent for folder in folders}  # a folder of folders may have few files
    wrong = [
        f"{folder.relative_to(root)}: {count} files"
        for folder, count in folders.items()
        if count > ROOMY.get(folder.name, MOST) or (count < FEWEST and folder not in parents)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_tree_is_flat(texts: list[Path], root: Path) -> None:
    paths = [path.relative_to(root) for path in texts]
    wrong = [str(path) for path in paths if len(path.parts) - 1 > LEVELS]
    assert not wrong, "\n".join(wrong)


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def test_nothing_has_an_empty_name(sources: list[Any]) -> None:
    wrong = []
    for source in sources:
        names = [source.path.stem, *(c.name for c in source.classes())]
        names += [function.name for function in source.functions()]
        wrong += [f"{source.name}: {name}" for name in names if words(name) & NAMELESS]
    assert not wrong, "\n".join(wrong)
