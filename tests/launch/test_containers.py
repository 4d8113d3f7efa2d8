from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from spython.main.parse.parsers import get_parser

HADOLINT = Path(sys.executable).with_name("hadolint")
HERE = Path(__file__).resolve().parents[2] / "scripts" / "containers"


def linted(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, file], capture_output=True, text=True, check=False)


def packages(text: str) -> set[str]:
    (listed,) = re.findall(r"--no-install-recommends \\\n(.*?)\n", text)
    return set(listed.removesuffix("\\").split())


def test_the_dockerfile_is_linted_and_the_linter_sees_a_mistake(tmp_path: Path) -> None:
    found = linted(HERE / "Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text((HERE / "Dockerfile").read_text().replace("WORKDIR /work", "RUN cd /work"))
    assert "DL3003" in linted(bad).stdout


def test_the_definition_has_what_apptainer_needs() -> None:
    (recipe,) = get_parser("singularity")(str(HERE / "dlplatform.def")).parse().values()
    assert recipe.fromHeader == "debian:12-slim"
    assert recipe.cmd == 'exec dlp "$@"'
    assert "PATH=/opt/dlplatform/.venv/bin:$PATH" in recipe.environ
    script = "\n".join(recipe.install)
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_both_recipes_install_the_same() -> None:
    docker = (HERE / "Dockerfile").read_text()
    apptainer = (HERE / "dlplatform.def").read_text()
    assert packages(docker) == packages(apptainer)
    assert re.search(r"FROM (\S+)", docker)[1] == re.search(r"From: (\S+)", apptainer)[1]  # type: ignore[index]


@pytest.mark.parametrize("left_out", [".git", ".venv", "outputs", "multirun"])
def test_the_image_takes_no_private_files(left_out: str) -> None:
    assert left_out in (HERE / "Dockerfile.dockerignore").read_text().split()
