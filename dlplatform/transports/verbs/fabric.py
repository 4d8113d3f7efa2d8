"""Which RDMA device, port and GID to use: asked of the kernel, or named by the environment.

``DLP_RDMA_DEVICE`` (``mlx5_0`` or ``mlx5_0:2`` with a port) and ``DLP_RDMA_GID`` (an index)
choose; without them the port with the GID of a connection's own address is taken, else the
first active one.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import resource
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dlplatform.errors import EnvironmentMissing, UsageError, closest

DEVICES = Path("/sys/class/infiniband")
DEVICE, GID = "DLP_RDMA_DEVICE", "DLP_RDMA_GID"
MODULES = ("addr", "cq", "device", "fork", "mr", "pd", "pyverbs_error", "qp", "wr")
MOST_GIDS = 1024
"""The kernel fills no larger table."""
NONE_HERE = (
    "allowed: an InfiniBand or RoCE device with an active port - do: load its driver, or make a "
    "software one (modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0); tcp and shm work "
    "without"
)
opening = threading.RLock()
"""Whoever opens what has a file of events holds this."""


@functools.cache
def verbs() -> SimpleNamespace:
    """Return pyverbs' modules under their names, and its enumerations as ``e``.

    Raises:
        EnvironmentMissing: when it is not installed for this Python.
    """
    try:
        found = {name: import_module(f"pyverbs.{name}") for name in MODULES}
        try:
            enums = import_module("pyverbs.enums")  # 44
        except ImportError:
            enums = import_module("pyverbs.libibverbs_enums")  # later
    except ImportError as error:
        place = sysconfig.get_path("platlib")
        raise EnvironmentMissing(
            f"pyverbs for RDMA: {error} - allowed: pyverbs 44 or later of this system's packages "
            "(PyPI's does not build) - do: apt-get install -y python3-pyverbs ibverbs-providers, "
            f"then ln -s /usr/lib/python3/dist-packages/pyverbs {place}"
        ) from None
    return SimpleNamespace(e=enums, **found)


@dataclass(frozen=True)
class Outlet:
    """One GID of one port: an address on the fabric."""

    device: str
    port: int
    index: int
    """Of the GID in the port's table."""
    gid: str
    """As an IPv6 address."""
    routable: bool
    """Of RoCE v2."""
    active: bool
    """Its port can be used."""

    @property
    def name(self) -> str:
        """Return the port as DLP_RDMA_DEVICE takes it."""
        return f"{self.device}:{self.port}"

    def fitness(self, near: str) -> tuple[bool, ...]:
        """Rank outlets: usable, of the connection's own address, routable, IPv4."""
        gid = ipaddress.IPv6Address(self.gid)
        return (
            self.active,
            near in (self.gid, str(gid.ipv4_mapped)),
            self.routable,
            gid.ipv4_mapped is not None,
        )


@functools.cache
def context(device: str) -> Any:
    """Return a device opened in this process, where it stays open.

    Raises:
        EnvironmentMissing: when this user may not open it, or its provider is missing.
    """
    v = verbs()
    try:
        if v.fork.is_fork_initialized() == v.e.IBV_FORK_DISABLED:
            v.fork.fork_init()  # a forked child must not move registered pages
        with opening:
            return v.device.Context(name=device)
    except v.pyverbs_error.PyverbsError as error:
        raise EnvironmentMissing(
            f"RDMA device {device}: {error} - allowed: a device this user may open - do: see "
            "ls -l /dev/infiniband, and install its provider (apt-get install ibverbs-providers)"
        ) from None


def devices() -> list[str]:
    """Return the names of the RDMA devices that the kernel knows."""
    return sorted(path.name for path in DEVICES.glob("*"))


def outlets() -> Iterator[Outlet]:
    """Yield every GID of every port of every device."""
    v = verbs()
    for device in devices():
        opened = context(device)
        for one in opened.query_gid_table(MOST_GIDS):
            port = opened.query_port(one.port_num)
            gid = str(ipaddress.IPv6Address(one.gid_str()))
            yield Outlet(
                device, one.port_num, one.gid_index, gid,
                one.gid_type == v.e.IBV_GID_TYPE_ROCE_V2, port.state == v.e.IBV_PORT_ACTIVE,
            )  # fmt: skip


def choose(near: str = "", found: Sequence[Outlet] | None = None) -> Outlet:
    """Return the outlet for a connection with the local address ``near``.

    Raises:
        UsageError: when the environment names what is not there.
        EnvironmentMissing: when there is no device, or none of its ports is active.
    """
    found = list(outlets()) if found is None else found
    if not found:
        raise EnvironmentMissing(f"no RDMA device on this machine - {NONE_HERE}")
    names = sorted({name for one in found for name in (one.device, one.name)})
    device = os.environ.get(DEVICE, "")
    if device and device not in names:
        raise UsageError(
            f"{DEVICE}={device} is not here{closest(device, names)} - allowed: {', '.join(names)} "
            "- do: name one of them, or unset it"
        )
    fitting = [one for one in found if device in ("", one.device, one.name)]
    index = os.environ.get(GID, "")
    if index:
        places = ", ".join(f"{one.index} ({one.name} {one.gid})" for one in fitting)
        fitting = [one for one in fitting if str(one.index) == index]
        if not fitting:
            raise UsageError(
                f"{GID}={index} is no GID of {device or 'any device'} - allowed: {places} - do: "
                "name the index of one of them, or unset it"
            )
    best = max(fitting, key=lambda one: one.fitness(near))
    if not best.active:
        idle = ", ".join(sorted({one.name for one in fitting}))
        raise EnvironmentMissing(f"no RDMA port is active: {idle} - {NONE_HERE}")
    return best


def locked_memory() -> str:
    """Return how much memory this process may lock, as text."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft / 2**20:g} MiB"


def lock_refused(size: int, reason: str) -> EnvironmentMissing:
    """Return the error for memory that was not registered, mostly for a limit on locked memory."""
    return EnvironmentMissing(
        f"registering {size / 2**20:.1f} MiB with the RDMA device: {reason} - allowed: ulimit -l "
        f"is {locked_memory()} - do: ulimit -l unlimited (root sets it: memlock in "
        "/etc/security/limits.conf, LimitMEMLOCK of slurmd, --ulimit memlock=-1 of docker)"
    )
