"""The whole suite of transports inside mpirun: on one host, and as if every rank had its own.

tests/support/hands.py is the MPI job: rank 0 runs pytest on this folder, the others are boxes and
workers.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from mpis import ENV, MPICH, OPEN_MPI, TOP, Mpi, needs
from seldom import LONG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
BUFFERS = ("test_transports.py",)
OTHERS = (
    *("test_transport_jobs.py", "test_views.py", "test_box_operations.py"),
    *("test_functions.py", "test_functions_more.py", "test_functions_waiting.py"),
)
ALL = (*BUFFERS, *OTHERS)
BOXES, RANKS, MORE = 4, 10, 15
"""More where tests kill some: Open MPI goes on without them, on one host."""
APART = {"DLP_MPI_APART": "1"}
MESSAGES, ONE_SIDED = ({**APART, "DLP_MPI_ONE_SIDED": how} for how in "01")
SELDOM = (LONG, needs(OPEN_MPI))


@pytest.mark.parametrize(
    ("mpi", "how", "files", "fewest"),
    [
        pytest.param(OPEN_MPI, {}, ALL, 131, id="openmpi-shared", marks=needs(OPEN_MPI)),
        pytest.param(MPICH, {}, ALL, 125, id="mpich-shared", marks=needs(MPICH)),
        pytest.param(OPEN_MPI, ONE_SIDED, BUFFERS, 41, id="openmpi-rma", marks=needs(OPEN_MPI)),
        pytest.param(OPEN_MPI, ONE_SIDED, OTHERS, 83, id="openmpi-others", marks=SELDOM),
        pytest.param(MPICH, MESSAGES, OTHERS, 83, id="mpich-messages", marks=needs(MPICH)),
        pytest.param(MPICH, ONE_SIDED, BUFFERS, 41, id="mpich-rma", marks=needs(MPICH)),
    ],
)
def test_the_suite(mpi: Mpi, how: dict[str, str], files: tuple[str, ...], fewest: int) -> None:
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:pytest_mpi", "--color=no"]
    ranks = mpi.ranks(MORE if mpi is OPEN_MPI and not how else RANKS)
    line = [*ranks, mpi.python, str(TOP / "tests/support/hands.py"), str(BOXES)]
    done = subprocess.run(
        [*line, *words, *(str(HERE / name) for name in files)],
        env={**ENV, **how}, cwd=TOP, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    said = done.stdout + done.stderr
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted and int(counted[1]) >= fewest, said
    assert not re.search(r"\d+ (failed|error)", done.stdout), said
    assert "Traceback" not in said, said
