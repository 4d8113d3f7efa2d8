"""Rows of a push: a worker adds 16 MiB to a vector in another process, or only writes it there.

Beside a parameter server made of torch.distributed.rpc, and beside Mooncake's TCP write.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from boxbench import peers, ranks
from boxbench.memory import TINY, filled
from boxbench.ranks import Plan, Seat
from boxbench.rows import MIB, Call, Missing, Row, Settings, Times, environment, missing
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = 4 * MIB
LIMIT_S = 120
CLIENT, SERVER = 0, 1
TCP_ONLY = {"_transports": ["uv"], "_channels": ["basic"]}
RPC = (
    ("shm axpy", "torch rpc push + add, shared memory", {},
     "rpc as it is: on one host it takes shared memory and process_vm_readv"),
    ("shm axpy", "torch rpc push + add, TCP", TCP_ONLY, ""),
    ("tcp axpy", "torch rpc push + add, TCP", TCP_ONLY,
     "rpc over TCP, as between hosts: its shared-memory threads poll and would take our cores"),
)  # fmt: skip
TUNED = {"GLOG_minloglevel": "2", "MC_TCP_ENABLE_CONNECTION_POOL": "1",
         "MC_TCP_SLICE_SIZE": str(4 * MIB)}  # fmt: skip
"""The fastest of the settings of Mooncake's TCP transport that were tried."""
_master: dict[str, Tensor] = {}
"""What the rpc server holds."""


def nothing() -> None:
    """Do nothing: the server's part of every turn."""


def take_turns(seat: Seat, theirs: Call) -> Times:
    """Time ours and theirs in turns, on the client; the server only meets."""
    if seat.rank == SERVER:
        return seat.turns({"ours": nothing, "theirs": nothing})
    more, x = seat.plan.more, filled(FLOATS)
    cluster = Cluster([more["box"]], "push", more["box_secret"].encode())
    box = cluster.buffer("push", FLOATS, True)
    calls: dict[str, Call] = {
        "axpy": lambda: box.axpy(TINY, x.address),
        "write": lambda: box.write(x.address),
    }
    times = seat.turns({"ours": calls[more["op"]], "theirs": theirs})
    cluster.close()
    return times


def add(tensor: Tensor) -> None:
    """Add what a worker pushes (runs in the rpc server)."""
    _master["weights"].add_(tensor)


def rpc(seat: Seat) -> Times:
    """Run the client or the server of torch.distributed.rpc."""
    import torch
    from torch.distributed import rpc as torch_rpc

    torch.set_num_threads(1)
    os.environ["TP_SOCKET_IFNAME"] = "lo"
    options = torch_rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=4,
        init_method=f"tcp://127.0.0.1:{seat.plan.more['port']}",
        **seat.plan.more["options"],
    )
    _master["weights"] = torch.zeros(FLOATS)
    torch_rpc.init_rpc(f"rank{seat.rank}", rank=seat.rank, world_size=2,
                       rpc_backend_options=options)  # fmt: skip
    tensor = torch.full((FLOATS,), TINY)
    server = f"rank{SERVER}"
    times = take_turns(seat, lambda: torch_rpc.rpc_sync(server, add, args=(tensor,)))
    torch_rpc.shutdown()
    return times


def mooncake(seat: Seat) -> Times:
    """Run the client or the server of Mooncake's transfer engine over TCP."""
    from mooncake.engine import TransferEngine

    engine: Any = TransferEngine()
    x = filled(FLOATS)
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "no TCP transport"
    assert engine.register_memory(x.address, 4 * FLOATS) == 0, "memory was not registered"
    if seat.rank == SERVER:
        seat.cluster.publish("mooncake", [f"127.0.0.1:{engine.get_rpc_port()}", x.address])
    peer, address = seat.cluster.lookup("mooncake")

    def write() -> None:
        code = engine.transfer_sync_write(peer, x.address, address, 4 * FLOATS)
        assert code == 0, f"Mooncake's write failed: {code}"

    return take_turns(seat, write)


def main(folder: str, rank: int) -> None:
    """Run one of the two processes."""
    seat = Seat(Plan.load(f"{folder}/plan.json"), rank)
    work = {"rpc": rpc, "mooncake": mooncake}[seat.plan.more["work"]]
    ranks.write_times(folder, rank, work(seat))
    seat.cluster.close()


def fill(row: Row, python: str, env: dict[str, str], settings: Settings, **more: Any) -> Row:
    """Run client and server with one interpreter and fill a row named TRANSPORT OP ..."""
    transport, op, *_ = row.name.split()
    with Boxes(1) as meeting, Boxes(1, transport) as boxes:
        more |= {"box": boxes.addresses[0], "box_secret": boxes.secret, "op": op, "port": free()}
        plan = Plan(meeting.addresses, meeting.secret, 2, FLOATS, settings.repeat, more)
        line = [python, "-m", "boxbench.push"]
        times = ranks.run(
            plan, lambda folder: [[*line, folder, str(r)] for r in range(2)], env, LIMIT_S
        )
    row.ours, row.theirs = times["ours"], times["theirs"]
    return row


def free() -> int:
    """Return a port that is free now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def rows(settings: Settings) -> Iterator[Row]:
    """Measure pushes beside both peers."""
    for name, title, options, note in RPC:
        row = Row("push", f"{name} 16 MiB", title, 5.0, note=note)
        try:
            yield fill(row, sys.executable, environment(), settings, work="rpc", options=options)
        except Missing as error:
            yield from missing(error, [row])
    write = Row("push", "tcp write 16 MiB", "Mooncake TCP write", 2.0)
    try:
        python = str(peers.python(settings.peers, "mooncake"))
        env = environment(**peers.libraries(settings.peers / "mooncake"), **TUNED)
        yield fill(write, python, env, settings, work="mooncake")
    except Missing as error:
        yield from missing(error, [write])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
