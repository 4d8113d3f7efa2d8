"""Which device, port and GID are chosen; what is said where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from guest import has_device

from dlplatform.errors import EnvironmentMissing, UsageError
from dlplatform.transports.verbs import fabric
from dlplatform.transports.verbs.fabric import Outlet
from launch.doctor.machine import rdma

OUTLETS = [
    Outlet("mlx5_0", 1, 0, "fe80::1", False, True),
    Outlet("mlx5_0", 1, 2, "::ffff:10.0.0.1", False, True),
    Outlet("mlx5_0", 1, 3, "::ffff:10.0.0.1", True, True),
    Outlet("mlx5_0", 2, 3, "::ffff:10.0.1.1", True, False),
    Outlet("mlx5_1", 1, 3, "::ffff:10.0.2.1", True, True),
    Outlet("mlx5_1", 1, 5, "fd00::7", True, True),
]


@pytest.mark.parametrize(
    ("near", "device", "gid", "expected"),
    [
        ("", "", "", 2), ("10.0.0.1", "", "", 2), ("10.0.2.1", "", "", 4), ("fd00::7", "", "", 5),
        ("10.0.1.1", "", "", 2), ("10.0.2.1", "mlx5_0", "", 2), ("", "mlx5_1:1", "5", 5),
        ("", "mlx5_0", "2", 1), ("10.9.9.9", "", "0", 0),
    ],
)  # fmt: skip
def test_the_fitting_outlet_is_chosen(
    near: str, device: str, gid: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Active, of the connection's address, RoCE v2, IPv4; unless the environment says otherwise."""
    monkeypatch.setenv("DLP_RDMA_DEVICE", device)
    monkeypatch.setenv("DLP_RDMA_GID", gid)
    assert fabric.choose(near, OUTLETS) == OUTLETS[expected]


@pytest.mark.parametrize(
    ("device", "gid", "text"),
    [
        ("mlx5_2", "", "DLP_RDMA_DEVICE=mlx5_2 is not here; closest: mlx5_.* - allowed: mlx5_0, "),
        ("mlx5_1", "2", r"DLP_RDMA_GID=2 is no GID of mlx5_1 - allowed: 3 \(mlx5_1:1 ::ffff:"),
        ("", "9", "DLP_RDMA_GID=9 is no GID of any device - allowed: 0 "),
        ("mlx5_0:2", "", "no RDMA port is active: mlx5_0:2 - "),
    ],
)
def test_what_is_not_there_is_one_line(
    device: str, gid: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLP_RDMA_DEVICE", device)
    monkeypatch.setenv("DLP_RDMA_GID", gid)
    with pytest.raises((UsageError, EnvironmentMissing), match=text):
        fabric.choose("", OUTLETS)


def start_without(before: str, path: str = "") -> str:
    """Return what a box says that cannot start; it ends with exit code 3."""
    code = f"import sys; {before}; from dlplatform.memorybox.__main__ import *"
    line = [sys.executable, "-c", code, "--bind", "verbs://127.0.0.1:0"]
    env = {**os.environ, "DLP_SECRET": "secret", "PYTHONPATH": path}
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_without_pyverbs_the_remedy_is_one_line() -> None:
    said = start_without("sys.modules['pyverbs'] = None")
    assert said.startswith("dlp: error: pyverbs for RDMA: ")
    assert "apt-get install -y python3-pyverbs" in said
    assert "ln -s /usr/lib/python3/dist-packages/pyverbs /" in said


@pytest.mark.slow
@pytest.mark.skipif(has_device(), reason="there is a device")
def test_without_a_device_the_remedy_is_one_line() -> None:
    """With the real pyverbs, which the guest needs as well."""
    root = Path(__file__).parents[3]
    subprocess.run(["bash", "scripts/rdma_vm/build.sh"], cwd=root, check=True)
    said = start_without("pass", str(root / "build" / "rdma_vm" / "python"))
    assert said.startswith("dlp: error: no RDMA device on this machine - allowed: ")
    assert "rdma link add rxe0 type rxe netdev eth0" in said


@pytest.mark.skipif(has_device(), reason="there is a device")
def test_the_doctor_says_that_there_is_no_device() -> None:
    (found,) = rdma()
    assert (found.what, found.value, found.good) == ("RDMA", "no device", False)
