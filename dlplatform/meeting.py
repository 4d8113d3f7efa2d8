"""Meeting: how ranks that no MPI connects hear one message of rank 0's, and where to reach it.

The message holds the secret of the boxes. It lies in a folder that only its owner can read and all
nodes share. Under Slurm all ranks know its name; torchrun's store, which answers whoever asks it,
only says where it is.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlplatform.errors import PeerLost, UsageError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from dlplatform.world import World

PATIENCE_S, GOODBYE_S, PAUSE_S = 120.0, 10.0, 0.05
MESSAGE, PLACE = "message.json", "dlp/meeting"
STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_LAUNCHER_PORT")
MASTER = ("MASTER_ADDR", "MASTER_PORT")
_stores: list[Store] = []  # rank 0's may be the one that the others ask


def meet(world: World, value: Any) -> Any:
    """Return rank 0's value in all ranks.

    Raises:
        UsageError: nothing says how these ranks could find each other.
        PeerLost: rank 0 said nothing in time, or not where this rank can read it.
    """
    if world.launcher == "Slurm":
        name = ".dlp-meeting-" + "-".join(os.environ[part] for part in STEP if part in os.environ)
        if world.rank:
            return _hear(Path.cwd() / name, world)
        return _say(_private(Path.cwd() / name), world, value)
    store = _store(world)
    if world.rank:
        return _hear(Path(store.get(PLACE).decode()), world)
    near = tempfile.gettempdir() if world.local_size >= world.size else os.getcwd()
    folder = Path(tempfile.mkdtemp(prefix=".dlp-meeting-", dir=near))
    _say(folder, world, value)
    store.set(PLACE, str(folder))
    return value


def _private(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def _store(world: World) -> Store:
    """Return the store of torchrun, or one of rank 0's at the same address."""
    if world.launcher != "torchrun" or not all(name in os.environ for name in MASTER):
        raise UsageError(
            f"{world.size} workers under {world.launcher} without boxes or {' and '.join(MASTER)} "
            "- allowed: mpirun, srun, torchrun, or running boxes - do: torchrun --nproc-per-node="
            f"{world.size} ..., or dlp box --bind ... and cluster.boxes=[...]"
        )
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE_S)))
    except RuntimeError as error:
        where = ":".join(os.environ[name] for name in MASTER)
        raise PeerLost(
            f"rank {world.rank} found nobody at MASTER_ADDR:MASTER_PORT={where}: "
            f"{str(error).splitlines()[0]} - allowed: where rank 0 is - do: correct both"
        ) from None
    _stores.append(store)
    return store  # type: ignore[no-any-return]


def _say(folder: Path, world: World, value: Any) -> Any:
    """Write the message; at the end, once all have read it, take the folder away."""
    draft = folder / f"{MESSAGE}.part"
    draft.write_text(json.dumps(value))
    draft.rename(folder / MESSAGE)
    atexit.register(_leave, folder, world.size - 1)
    return value


def _leave(folder: Path, readers: int) -> None:
    until(lambda: len(list(folder.glob("read-*"))) >= readers, GOODBYE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _hear(folder: Path, world: World) -> Any:
    message = folder / MESSAGE
    if not until(message.exists, PATIENCE_S):
        raise PeerLost(
            f"rank {world.rank} on {world.node} heard nothing of rank 0 in {folder} within "
            f"{PATIENCE_S:g} s - allowed: a working folder that all nodes share - do: start in one "
            "(cd), or see why rank 0 did not come"
        )
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise UsageError(
            f"{folder} belongs to somebody else, or others can read it - allowed: a folder of "
            "yours, mode 0700 - do: remove it and start again"
        )
    value = json.loads(message.read_text())
    (folder / f"read-{world.rank}").touch()
    return value


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is true or the time is over; tell whether it is true."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE_S)
    return True


# -- where this node can be reached ------------------------------------------------------------


def way(world: World, transport: str) -> tuple[str, str]:
    """Return the transport and the host of boxes that rank 0 starts for all these workers."""
    near = world.local_size >= world.size
    if transport == "auto":
        transport = "shm" if near else "tcp"
    return transport, "127.0.0.1" if near or transport == "shm" else own_address()


def own_address() -> str:
    """Return the address at which other nodes reach this one.

    It is DLP_ADDRESS if that is set, else what Slurm or torchrun call the node, else its name.
    """
    names: tuple[Callable[[], str], ...] = (
        lambda: os.environ.get("DLP_ADDRESS", ""),
        lambda: node_addresses([name])[0] if (name := os.environ.get("SLURMD_NODENAME")) else "",
        lambda: os.environ.get("MASTER_ADDR", ""),
        socket.gethostname,
    )
    return outward(next(name for ask in names if (name := ask())))


def outward(name: str) -> str:
    """Return a name's address; one that is only its host's own becomes that of its network."""
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "127.0.0.1"
    if not address.startswith("127.") or name == address:
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; an address for documentation
        except OSError:
            return address
        return str(probe.getsockname()[0])


def node_addresses(nodes: list[str]) -> list[str]:
    """Ask Slurm for the addresses of nodes, in their order; a name where it has no answer."""
    line = ["scontrol", "show", "node", "--oneliner", ",".join(nodes)]
    try:
        told = subprocess.run(line, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        told = ""
    found = [dict(w.split("=", 1) for w in row.split() if "=" in w) for row in told.splitlines()]
    known = {row.get("NodeName"): row.get("NodeAddr") for row in found}
    return [known.get(node) or node for node in nodes]
