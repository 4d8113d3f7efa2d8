"""The examples of docs/ run as they stand there: a task, a rule, a transport of somebody's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def install(page: Path, into: Path) -> str:
    """Put a page's module where Python finds it, with the entry points of its pyproject.toml.

    Returns the module's name.
    """
    found = dict(reversed(FENCE.findall(page.read_text())))  # the first block of each language
    project = tomllib.loads(found["toml"])["project"]
    (into / f"{project['name']}.py").write_text(found["python"])
    info = into / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"]
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in groups[g].items()) for g in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return str(project["name"])


def run(folder: Path, root: Path, *words: str) -> str:
    """Run Python there with the page's module installed; return what it printed."""
    paths = os.pathsep.join([str(folder), str(root)])
    env = {**os.environ, "PYTHONPATH": paths}
    line = [sys.executable, *words]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(folder: Path, root: Path, *words: str) -> dict[str, object]:
    where = ["run.dir=run", "run.progress=none"]
    run(folder, root, "-m", "dlplatform.cli", "train", *words, *where)
    found: dict[str, object] = json.loads((folder / "run" / "result.json").read_text())
    return found


@pytest.mark.timeout(300)
def test_the_new_task_trains(root: Path, tmp_path: Path) -> None:
    name = install(root / "docs" / "new_task.md", tmp_path)
    listed = run(tmp_path, root, "-m", "dlplatform.cli", "tasks")
    assert f"toy/{name}" in listed
    words = (f"task=toy/{name}", "rule=easgd", "workers=2", "run.minibatches=400")
    result = train(tmp_path, root, *words)
    assert result["workers"] == 2
    assert float(str(result["score"])) > 0.9
    (tmp_path / "point.txt").write_text("0.1 0.2")
    predicted = ("-m", "dlplatform.cli", "predict", "run=run", "point.txt", "--json")
    assert '"arm"' in run(tmp_path, root, *predicted)


@pytest.mark.timeout(300)
def test_the_new_rule_trains_with_two_workers(root: Path, tmp_path: Path) -> None:
    name = install(root / "docs" / "new_rule.md", tmp_path)
    words = ("task=zoo/digits", f"rule={name}", "workers=2", "boxes=2", "run.minibatches=40")
    result = train(tmp_path, root, *words, "rule.interval=3")
    assert (result["rule"], result["workers"]) == (name, 2)


def test_the_new_transport_reaches_a_box(root: Path, tmp_path: Path) -> None:
    name = install(root / "docs" / "new_transport.md", tmp_path)
    code = f"""
from dlplatform import Cluster
from dlplatform.memorybox.memory import Memory
with_two = Cluster(["{name}://a", "{name}://b"])
buffer = with_two.attach(with_two.create("x", 5000))
ones = Memory(5000)
buffer.write(ones.address)
buffer.axpy(2.0, ones.address)
buffer.read()
print([transport.moved for transport in with_two.transports])
with_two.close()
"""
    moved = json.loads(run(tmp_path, root, "-c", code))
    assert sum(moved) == 3 * 4 * 5000
    assert all(moved)


@pytest.mark.timeout(300)
def test_the_manual_of_the_search_runs(root: Path, tmp_path: Path) -> None:
    blocks = dict(FENCE.findall((root / "docs" / "manual_search.md").read_text()))
    *cycles, told, merged = run(tmp_path, root, "-c", blocks["python"]).splitlines()
    assert 1 <= len(cycles) <= 2 and all(line.startswith("source 0.") for line in cycles)
    assert "were relevant" in told and merged == "True"
    assert {path.name for path in tmp_path.iterdir()} == {"shard0.npz", "shard1.npz"}
    assert set(json.loads(blocks["json"])) == {"picture", "relevant"}


MANUAL_BOXES = ("shm://box0", "shm://box1")


@pytest.mark.timeout(120)
def test_the_manual_of_the_box_runs(root: Path, tmp_path: Path) -> None:
    """Its blocks of Python, one after the other, with the two boxes that it starts first.

    The program with a docstring runs by itself: tests/conformance/test_functions_whole.py.
    """
    blocks = FENCE.findall((root / "docs" / "manual_box.md").read_text())
    starts = next(text for language, text in blocks if language == "bash").splitlines()
    code = "\n".join(t for name, t in blocks if name == "python" and not t.startswith('"""'))
    suffix = f"-{os.getpid()}"
    boxes = []
    for line in starts:
        words = line.replace("dlp", "-m dlplatform.cli", 1).split()
        words = [word + suffix if word in MANUAL_BOXES else word for word in words]
        env = {**os.environ, "PYTHONPATH": str(root)}
        options = {"stdout": subprocess.PIPE, "cwd": tmp_path, "env": env, "text": True}
        boxes.append(subprocess.Popen([sys.executable, *words], **options))  # type: ignore[call-overload]
        assert "address" in boxes[-1].stdout.readline()
    for name in MANUAL_BOXES:
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', f'"{name}{suffix}"')
    try:
        assert run(tmp_path, root, "-c", code + "\ncluster.close()\nprint('done')") == "done\n"
    finally:
        for box in boxes:
            box.terminate()
            box.wait(10)
