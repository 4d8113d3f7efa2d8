"""A real Slurm for tests, started by scripts/slurm_here.sh, and jobs of the platform in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from liverun import DLP, ROOT, alive, environ, until

from launch.slurm.queue import HELD

TOP = Path(__file__).resolve().parents[2]
SCRIPT = TOP / "scripts" / "slurm_here.sh"
SUPPORT = Path(__file__).parent
PATIENCE_S = 420.0
POINTS = ("task=test/points", "launcher=slurm", "run.progress=plain", "run.extras=false")
LIMIT = (
    *POINTS, "rule=ssgd", "workers=2", "boxes=2", "slurm.nodes=2", "slurm.time=1",
    "slurm.signal_s=15", "run.minibatches=1000", "run.eval_every=1000", "run.dir=run",
    "slurm.boxes_on=[n4,n5]",
)  # fmt: skip
"""A job that needs more than the 15 to 45 seconds it is given, on nodes that other tests spare."""
SIX = (
    "-m", "sweep=submitit", "task=zoo/digits", "rule=alone", "task.augment=false,true",
    "seed=0,1,2", "run.minibatches=8", "run.eval_every=8", "run.extras=false",
    "hydra.sweep.dir=sweep",
)  # fmt: skip


def offer_points(folder: Path) -> Path:
    """Make the tasks of tinytask.py known to every ``dlp`` that has the folder on its path."""
    info = folder / "tiny-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[dlplatform.tasks]\ntiny = tinytask\n")
    return folder


class Here:
    """Several nodes on this machine.

    Args:
        folder: for everything that is theirs.
        nodes: how many, of two processors each.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        paths = os.pathsep.join(map(str, (TOP, SUPPORT, offer_points(folder / "tasks"))))
        hidden = ("SLURM_", "DLP_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        self.env |= {**ROOT, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.env |= {"SLURM_CONF": str(folder / "slurm" / "slurm.conf")}
        done = self._script("up", str(nodes), "2")
        if done.returncode and os.geteuid():
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr

    def _script(self, command: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        line = ["bash", str(SCRIPT), command, str(self.folder / "slurm"), *words]
        more = {"SLURM_HERE_TIMEOUT": "15", **env}
        return subprocess.run(
            line, env={**self.env, **more}, capture_output=True, text=True, timeout=300
        )

    def down(self) -> None:
        """End it with all its jobs."""
        self._script("down")

    def node(self, name: str, before: str = "") -> None:
        """Start a node again, behind a command."""
        assert self._script("node", name, SLURM_HERE_PREFIX=before).returncode == 0
        until(lambda: "idle" in self.run("sinfo", "-h", "-n", name, "-o", "%T").stdout, what=name)

    def run(self, *line: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command that reaches this cluster."""
        return subprocess.run(
            line, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def dlp(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run ``dlp`` in a folder."""
        return self.run(*DLP, *words, cwd=cwd)

    def python(self, code: str, *before: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a script behind a launcher."""
        (cwd / "script.py").write_text(code)
        return self.run(*before, sys.executable, "script.py", cwd=cwd)

    def follow(self, *words: str, cwd: Path) -> Followed:
        """Start ``dlp train`` with what it says in a file."""
        return Followed(self, [*DLP, "train", *words], cwd)

    def state(self, number: str) -> dict[str, str]:
        """Return what Slurm knows of a job."""
        told = self.run("scontrol", "show", "job", "--oneliner", number).stdout
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def ended(self, number: str) -> dict[str, str]:
        """Wait for the end of a job, whose delay after a requeue is cut short.

        Not to nothing: Slurm would take the new start for a part of the old one.
        """
        hurried = set()

        def look() -> Any:
            told = self.state(number)
            again = told.get("Restarts", "0")
            if told.get("Reason") == "BeginTime" and again not in hurried:
                self.run("scontrol", "update", f"JobId={number}", "StartTime=now+4")
                hurried.add(again)
            return told if told.get("JobState") not in HELD else None

        ended: dict[str, str] = until(look, PATIENCE_S, f"the end of job {number}")
        return ended

    def processes(self, word: str, node: str = "") -> list[int]:
        """Return the processes of a node, or of all, whose command contains a word."""
        mine = {f"SLURM_CONF={self.env['SLURM_CONF']}".encode()}
        mine |= {f"SLURMD_NODENAME={node}".encode()} if node else set()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                known = {*environ(entry).split(b"\0")}
                if word in (entry / "cmdline").read_text() and mine <= known:
                    found.append(int(entry.name))
        return found

    def kill_steps(self, node: str) -> None:
        """Kill what holds a node's boxes and workers, and so them, as a node does that breaks."""
        for pid in self.processes("dlplatform.", node):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                parent = int(status.partition("PPid:")[2].split()[0])
                if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                    os.kill(parent, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)

    def kill_node(self, node: str) -> None:
        """Kill a node: its daemon, its steps, their processes."""
        pid = (self.folder / "slurm" / f"slurmd.{node}.pid").read_text()
        os.kill(int(pid), signal.SIGKILL)
        self.kill_steps(node)


class Followed:
    """A ``dlp train launcher=slurm`` beside the test."""

    def __init__(self, here: Here, line: list[str], cwd: Path) -> None:
        self.here, self._out = here, cwd / "out"
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                line, env=here.env, cwd=cwd, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    @property
    def out(self) -> str:
        """Return what it said."""
        return self._out.read_text()

    def says(self, word: str) -> Followed:
        """Wait until it says something."""
        until(lambda: word in self.out or self.process.poll() is not None, PATIENCE_S, word)
        assert word in self.out, self.out
        return self

    @property
    def number(self) -> str:
        """Return the number of its job."""
        self.says("submitted")
        return self.out.partition("dlp: job ")[2].split()[0]

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.wait()


def lines(path: Path, start: str) -> list[str]:
    """Return the lines of a file that begin with a word."""
    return [line for line in path.read_text().splitlines() if line.startswith(start)]


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    """Wait for processes to end."""
    end = time.monotonic() + seconds
    still: Callable[[], list[int]] = lambda: [pid for pid in pids if alive(pid)]  # noqa: E731
    while still() and time.monotonic() < end:
        time.sleep(0.1)
    return not still()
