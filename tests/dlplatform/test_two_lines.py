"""The script of docs/two_lines.md, as it stands there: plain, alone and under mpirun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "two_lines.md"
MPIRUN = Path(sys.executable).with_name("mpirun")
needs_mpirun = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside python")
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
WORKERS = 4


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found, f"no {language} block in {PAGE}"
    return found[1]


def plain() -> list[str]:
    return block("python").splitlines()


def changed() -> list[str]:
    """Return the script with the added lines of the page, each after the line before it there."""
    script, last = plain(), ""
    for line in block("diff").splitlines():
        if line.startswith(" "):
            last = line[1:]
        else:
            assert line.startswith("+")
            assert script.count(last) == 1, f"{last!r} is not a line of the script"
            script.insert(script.index(last) + 1, line[1:])
            last = line[1:]
    return script


def run(folder: Path, script: list[str], *before: str) -> list[float]:
    file = folder / "digits.py"
    file.write_text("\n".join(script))
    ended = subprocess.run(
        [*before, sys.executable, str(file)],
        env={**os.environ, **ROOT, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return [float(value) for value in re.findall(r"test accuracy ([\d.]+)", ended.stdout)]


def ranks(count: int) -> tuple[str, ...]:
    return str(MPIRUN), "-n", str(count), "--oversubscribe"


def shorter(script: list[str], steps: int) -> list[str]:
    return [line.replace("STEPS, BATCH = 300", f"STEPS, BATCH = {steps}") for line in script]


def under(rule: str, script: list[str]) -> list[str]:
    return [line.replace('rule="easgd"', f'rule="{rule}"') for line in script]


def test_the_script_is_short_and_the_change_is_two_lines_and_an_import() -> None:
    assert len(plain()) <= 45
    assert "dlplatform" not in block("python")
    added = [line for line in changed() if line not in plain()]
    assert len(added) == 3
    assert [line for line in changed() if line not in added] == plain()


@pytest.mark.slow
def test_one_worker_under_asgd_prints_what_the_plain_script_prints(tmp_path: Path) -> None:
    script = shorter(under("asgd", changed()), 60)
    bits = ["import hashlib", "w = torch.cat([p.detach().flatten() for p in model.parameters()])"]
    bits += ["print('bits', hashlib.sha256(w.numpy().tobytes()).hexdigest())"]
    texts = []
    for name, lines in (("without", shorter(plain(), 60)), ("with", script)):
        file = tmp_path / f"{name}.py"
        file.write_text("\n".join(["import torch", "torch.manual_seed(7)", *lines, *bits]))
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        texts.append(subprocess.check_output([sys.executable, file], env=env, timeout=200))
    assert texts[0] == texts[1]
    assert b"bits" in texts[0]


@pytest.mark.slow
def test_the_page_as_it_stands_with_one_worker(tmp_path: Path) -> None:
    seeded = ["import torch", "torch.manual_seed(7)", *changed()]
    assert run(tmp_path, seeded)[0] > 0.9


@pytest.mark.slow
@needs_mpirun
def test_the_page_as_it_stands_under_mpirun(tmp_path: Path) -> None:
    accuracies = run(tmp_path, shorter(changed(), 120), *ranks(WORKERS))
    assert len(accuracies) == WORKERS
    assert min(accuracies) > 0.8


@pytest.mark.slow
@needs_mpirun
def test_workers_with_data_of_their_own(tmp_path: Path) -> None:
    """As the page advises: a seed and a share of the steps for each worker."""
    script = under("ssgd", changed())
    script.insert(script.index("job = dlplatform.init()") + 1, "torch.manual_seed(job.rank)")
    script = [line.replace("range(STEPS)", "range(STEPS // job.size)") for line in script]
    accuracies = run(tmp_path, script, *ranks(2))
    assert len(accuracies) == 2
    assert len(set(accuracies)) == 1, "ssgd workers hold equal weights"
    assert accuracies[0] > 0.8


def test_distribute_before_init_is_one_line(tmp_path: Path) -> None:
    script = [line for line in changed() if "dlplatform.init" not in line]
    (tmp_path / "digits.py").write_text("\n".join(script))
    line = [sys.executable, str(tmp_path / "digits.py")]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert "distribute before init" in ended.stderr.splitlines()[-1]
