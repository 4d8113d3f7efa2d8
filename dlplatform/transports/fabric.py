"""Which RDMA device, port and GID to use: asked of the kernel, or named by the environment.

``DLP_RDMA_DEVICE`` (``mlx5_0`` or ``mlx5_0:2`` with a port) and ``DLP_RDMA_GID`` (an index)
choose; without them the port with the GID of a connection's own address is taken, else the
first active one.
"""

from __future__ import annotations

import ipaddress
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlplatform.errors import EnvironmentMissing, UsageError, closest

DEVICES = Path("/sys/class/infiniband")
DEVICE, GID = "DLP_RDMA_DEVICE", "DLP_RDMA_GID"
NONE_HERE = (
    "allowed: an InfiniBand or RoCE device with an active port - do: load its driver, or make a "
    "software one (modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0); tcp and shm work "
    "without"
)


@dataclass(frozen=True)
class Outlet:
    """One GID of one port: an address on the fabric."""

    device: str
    port: int
    index: int
    """Of the GID in the port's table."""
    gid: str
    """As an IPv6 address."""
    kind: str
    """``IB/RoCE v1`` or ``RoCE v2``."""
    state: str
    """``ACTIVE`` when it can be used."""

    @property
    def name(self) -> str:
        """Return the port as DLP_RDMA_DEVICE takes it."""
        return f"{self.device}:{self.port}"

    def fitness(self, near: str) -> tuple[bool, ...]:
        """Rank outlets: usable, of the connection's own address, routable, IPv4."""
        gid = ipaddress.IPv6Address(self.gid)
        return (
            self.state == "ACTIVE",
            near in (self.gid, str(gid.ipv4_mapped)),
            self.kind.startswith("RoCE v2"),
            gid.ipv4_mapped is not None,
        )


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # an empty place of the table
        return ""


def outlets(devices: Path = DEVICES) -> Iterator[Outlet]:
    """Yield every GID of every port that the kernel knows."""
    for port in sorted(devices.glob("*/ports/*"), key=lambda p: (p.parts[-3], int(p.name))):
        state = _line(port / "state").rpartition(" ")[2]
        for place in sorted((port / "gids").glob("*"), key=lambda p: int(p.name)):
            gid = ipaddress.IPv6Address(_line(place) or 0)
            if int(gid):
                kind = _line(port / "gid_attrs" / "types" / place.name)
                yield Outlet(
                    port.parts[-3], int(port.name), int(place.name), str(gid), kind, state
                )


def choose(near: str = "", devices: Path = DEVICES) -> Outlet:
    """Return the outlet for a connection with the local address ``near``.

    Raises:
        UsageError: when the environment names what is not there.
        EnvironmentMissing: when there is no device, or none of its ports is active.
    """
    found = list(outlets(devices))
    if not found:
        raise EnvironmentMissing(f"no RDMA device: {devices} names none - {NONE_HERE}")
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
        fitting = [one for one in fitting if str(one.index) == index]
        if not fitting:
            places = ", ".join(f"{one.index} ({one.name} {one.gid})" for one in found)
            raise UsageError(
                f"{GID}={index} is no GID of {device or 'any device'} - allowed: {places} - do: "
                "name the index of one of them, or unset it"
            )
    best = max(fitting, key=lambda one: one.fitness(near))
    if best.state != "ACTIVE":
        states = ", ".join(sorted({f"{one.name} is {one.state or 'unknown'}" for one in fitting}))
        raise EnvironmentMissing(f"no RDMA port is active: {states} - {NONE_HERE}")
    return best


def locked_memory() -> str:
    """Return how much memory this process may lock, as text."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft / 2**20:g} MiB"


def lock_refused(size: int, reason: str) -> EnvironmentMissing:
    """Return the error for memory that could not be registered: usually a limit on locked memory."""
    return EnvironmentMissing(
        f"registering {size / 2**20:.1f} MiB with the RDMA device: {reason} - allowed: ulimit -l is "
        f"{locked_memory()} - do: ulimit -l unlimited (root sets it: memlock in "
        "/etc/security/limits.conf, LimitMEMLOCK of slurmd, --ulimit memlock=-1 of docker)"
    )
