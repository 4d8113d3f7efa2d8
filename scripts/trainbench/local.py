"""Rows of local SGD: ours beside Accelerate's and torchft's, each in its own environment.

The same two processes run ours and the peer's in turns, with a peer's interpreter that sees
this environment's packages, too; so torch is the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from boxbench.peers import python
from boxbench.rows import Missing

from dlplatform.memorybox.process import Boxes
from trainbench import processes
from trainbench.processes import Plan, Result, Seat, play
from trainbench.rows import Row, Settings, rates

PEERS = {"accelerate": "Accelerate LocalSGD", "torchft": "torchft LocalSGD"}
NET, WORKERS, INTERVALS, ROUNDS = "mlp", 2, (8, 32), (4, 1)
OURS = "localsgd"


def install(folder: Path) -> list[str]:
    """Make an environment for each peer; return what went wrong, a line each."""
    return [line for name in PEERS if (line := _install(folder / name, name))]


def _install(home: Path, name: str) -> str:
    print(f"installing {name} into {home}", flush=True)
    pins, seen = home / "pins.txt", sysconfig.get_path("purelib")
    made = [sys.executable, "-m", "venv", "--system-site-packages", str(home)]
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input"]
    for line in (made, [*pip, "-c", str(pins), name]):
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return f"{name} could not be installed: {said}"
        pins.write_text(f"torch=={version('torch').partition('+')[0]}\n")
        for path in home.glob("lib/python*/site-packages"):
            (path / "trainbench.pth").write_text(f"{seen}\n")
    return ""


# -- a worker -----------------------------------------------------------------------------------


def accelerate(seat: Seat, interval: int, stack: ExitStack) -> Any:
    """Return a step of Accelerate's LocalSGD."""
    from accelerate import Accelerator
    from accelerate.local_sgd import LocalSGD

    from trainbench import contest, nets

    rank, size = str(seat.rank), str(seat.plan.size)
    os.environ |= {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # asked for, not used
    accelerator = Accelerator(cpu=True)
    model = nets.make(NET, seed=1)
    model, optimizer = accelerator.prepare(model, contest.sgd(model))
    local = stack.enter_context(LocalSGD(accelerator, model, interval))
    return contest.step_of(model, optimizer, NET, seat, local.step)


def torchft(seat: Seat, interval: int, stack: ExitStack) -> Any:
    """Return a step of torchft's LocalSGD; every worker is a replica group of its own."""
    from torch.distributed import TCPStore
    from torchft import Manager, ProcessGroupGloo
    from torchft.local_sgd import LocalSGD

    from trainbench import contest, nets

    model = nets.make(NET, seed=1)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stack.enter_context(nullcontext(store))  # it serves as long as somebody holds it
    manager = Manager(
        pg=ProcessGroupGloo(), min_replica_size=seat.plan.size, use_async_quorum=False,
        load_state_dict=model.load_state_dict, state_dict=model.state_dict, rank=0, world_size=1,
        store_addr="127.0.0.1", store_port=store.port, replica_id=f"{interval}-{seat.rank}",
        lighthouse_addr=seat.plan.more["lighthouses"][str(interval)], hostname="127.0.0.1",
        init_sync=False,
    )  # fmt: skip
    stack.callback(partial(manager.shutdown, wait=False))
    optimizer = contest.sgd(model)
    stack.enter_context(LocalSGD(manager, model, optimizer, interval))
    return contest.step_of(model, optimizer, NET, seat)


def ours(seat: Seat, interval: int) -> Any:
    """Return a step of this platform's local SGD."""
    from trainbench import contest

    settings = {"interval": interval} | ({} if rule() == OURS else {"overlap": False})
    return contest.contestant(rule(), NET, seat, **settings)


def rule() -> str:
    """Return the rule that stands for ours: elastic averaging in line where there is no other."""
    from dlplatform.rules.rule import rules

    return OURS if OURS in rules() else "easgd"


def work(seat: Seat) -> Result:
    """Run ours and the peer's with each interval in turns; a turn ends with an exchange."""
    import torch
    import torch.distributed as dist

    from trainbench import contest

    torch.set_num_threads(1)
    more = seat.plan.more
    if more["peer"] == "accelerate":
        contest.open_gloo(seat)
    times: Result = {}
    with ExitStack() as stack:
        for interval in INTERVALS:
            peer = {"accelerate": accelerate, "torchft": torchft}[more["peer"]]
            steps = {
                f"peer {interval}": peer(seat, interval, stack),
                f"ours {interval}": ours(seat, interval),
            }
            count = interval * max(1, 16 // interval)
            times |= contest.take_turns(seat, steps, more["rounds"], count)
        seat.meet()
    if dist.is_initialized():
        dist.destroy_process_group()
    return times


# -- the driver ---------------------------------------------------------------------------------


def lighthouse(home: Path, stack: ExitStack) -> str:
    """Start torchft's lighthouse; return its address."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    line = [str(home / "bin" / "torchft_lighthouse"), "--min_replicas", str(WORKERS),
            "--quorum_tick_ms", "10", "--join_timeout_ms", "1000",
            "--bind", f"127.0.0.1:{port}"]  # fmt: skip
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return f"http://127.0.0.1:{port}"


def times_of(peer: str, settings: Settings) -> Result:
    """Measure seconds a turn of ours and of a peer, the slowest worker's.

    Raises:
        Missing: when the peer is not installed, or a worker fails.
    """
    from trainbench.contest import slowest

    interpreter = python(settings.peers, peer)
    with ExitStack() as stack:
        boxes = stack.enter_context(Boxes(1))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        more: dict[str, Any] = {"peer": peer, "rounds": settings.pick(*ROUNDS)}
        more["store"] = f"{folder}/store"
        if peer == "torchft":
            home = settings.peers / peer
            more["lighthouses"] = {str(h): lighthouse(home, stack) for h in INTERVALS}
        plan = Plan(boxes.addresses, boxes.secret, WORKERS, more)
        return slowest(play(plan, "local", python=interpreter))


def rows(settings: Settings) -> Iterator[Row]:
    """Measure local SGD every 8 and every 32 steps beside both peers."""
    from trainbench.nets import NETS

    for peer, title in PEERS.items():
        named = {h: Row("local", f"{NETS[NET].title}: {rule()}, interval {h}", title, 1.0)
                 for h in INTERVALS}  # fmt: skip
        try:
            times = times_of(peer, settings)
        except Missing as error:
            times = {}
            for row in named.values():
                row.missing = str(error)
        for h, row in named.items():
            samples = WORKERS * NETS[NET].batch * h * max(1, 16 // h)
            row.ours = rates(times.get(f"ours {h}", []), samples)
            row.theirs = rates(times.get(f"peer {h}", []), samples)
            yield row


if __name__ == "__main__":
    processes.main(work, sys.argv[1:])
