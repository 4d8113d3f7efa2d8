"""What the tests of the house look at: the tree, its Python files and its pages."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kernels", "dlplatform", "trainers", "launch")
OURS = (*PACKAGES, "configs", "scripts", "tests", "docs")
TEXT = (".py", ".c", ".h", ".md", ".sh", ".yaml", ".toml", ".json", ".txt", "")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """One Python file of the tree."""

    path: Path

    @property
    def name(self) -> str:
        """Return its path from the top of the tree."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def package(self) -> str:
        """Return the top folder it is in."""
        return self.path.relative_to(ROOT).parts[0]

    @cached_property
    def text(self) -> str:
        """Return what is in it."""
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        """Return it parsed."""
        return ast.parse(self.text)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Yield every function and method, nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, FUNCTIONS):
                yield node

    def classes(self) -> Iterator[ast.ClassDef]:
        """Yield every class."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    def is_task(self) -> bool:
        """Tell whether it registers a task."""
        marks = [mark for one in self.classes() for mark in one.decorator_list]
        return any(
            isinstance(mark, ast.Call) and ast.unparse(mark.func).split(".")[-1] == "task"
            for mark in marks
        )


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    """Return the Python files of the four packages."""
    files = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [Source(path) for path in files]


@pytest.fixture(scope="session")
def pages() -> list[Path]:
    """Return every page of the tree."""
    return sorted([*ROOT.glob("*.md"), *(p for top in OURS for p in (ROOT / top).rglob("*.md"))])


@pytest.fixture(scope="session")
def top() -> list[str]:
    """Return the names at the top of the tree that are not ignored."""
    rules = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    names = sorted(path.name for path in ROOT.iterdir())
    return [n for n in names if n != ".git" and not any(fnmatch.fnmatch(n, r) for r in rules)]


@pytest.fixture(scope="session")
def texts(top: list[str]) -> list[Path]:
    """Return every text file of the tree, wherever it is."""
    found = []
    for name in top:
        path = ROOT / name
        found += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [p for p in found if p.suffix in TEXT and "__pycache__" not in p.parts]
