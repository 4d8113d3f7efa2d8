"""Imports point one way, and a box needs nothing but this machine's Python and msgpack."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYERS = ("kernels", "dlplatform", "trainers", "launch")
LIGHT = ("dlplatform/memorybox/", "dlplatform/transports/", "kernels/cpu.py", "kernels/build.py")
HEAVY = {"torch", "numpy", "mpi4py", "hydra", "omegaconf", "rich"}


def imported(node: ast.AST) -> list[str]:
    """Return the modules that one statement imports, with the names taken out of them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def everywhere(tree: ast.AST) -> Iterator[str]:
    """Yield what a file imports anywhere, except what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if not only_for_types(node):
            yield from imported(node)
            yield from everywhere(node)


def at_once(tree: ast.AST) -> Iterator[str]:
    """Yield what importing a file imports: functions run later."""
    for node in ast.iter_child_nodes(tree):
        if not only_for_types(node) and not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield from imported(node)
            yield from at_once(node)


def test_imports_point_one_way(sources: list[Any]) -> None:
    wrong = []
    for source in sources:
        allowed = LAYERS[: LAYERS.index(source.package) + 1]
        for node in ast.walk(source.tree):
            for name in imported(node):
                package = name.partition(".")[0]
                if package in (*LAYERS, "configs", "tests", "scripts") and package not in allowed:
                    wrong.append(f"{source.name}:{node.lineno} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_import_is_relative(sources: list[Any]) -> None:
    wrong = [
        f"{source.name}:{node.lineno}"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, "\n".join(wrong)


def test_boxes_and_transports_import_nothing_heavy(sources: list[Any]) -> None:
    wrong = []
    for source in sources:
        if source.name.startswith(LIGHT):
            heavy = {name for name in everywhere(source.tree) if name.split(".")[0] in HEAVY}
            wrong += [f"{source.name} imports {name}" for name in heavy]
    assert not wrong, "\n".join(wrong)


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level names of all modules in a fresh Python after some imports."""
    code = f"import sys, {', '.join(modules)}; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_box_and_its_transports_load_nothing_heavy(root: Path) -> None:
    transports = [
        f"dlplatform.transports.{p.stem}" for p in root.glob("dlplatform/transports/*.py")
    ]
    modules = [name for name in transports if not name.endswith("__init__")]
    loaded = loaded_by("dlplatform.memorybox.server", "dlplatform.memorybox.cluster", *modules)
    assert not loaded & HEAVY


def test_looking_at_all_tasks_loads_no_torch() -> None:
    assert not loaded_by("trainers", "dlplatform.task", "dlplatform.rules.rule") & {"torch"}


def test_task_modules_import_no_torch_at_once(sources: list[Any]) -> None:
    tasks = [source for source in sources if source.is_task()]
    assert tasks
    wrong = [
        f"{source.name} imports {name}"
        for source in tasks
        for name in at_once(source.tree)
        if name.split(".")[0] == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def test_one_function_imports_mpi(sources: list[Any]) -> None:
    found = [
        (source.name, function.name)
        for source in sources
        for function in source.functions()
        for node in ast.walk(function)
        if any(name.startswith("mpi4py.MPI") for name in imported(node))
    ]
    assert found == [("dlplatform/world.py", "mpi")]
    wrong = [
        source.name
        for source in sources
        if any(name.startswith("mpi4py") for name in at_once(source.tree))
    ]
    assert not wrong, "\n".join(wrong)
