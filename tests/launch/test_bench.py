from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dlplatform import cli
from dlplatform.errors import PeerLost
from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.transports.rawsocket import RawSocket
from launch import bench

OPS = ["read", "write", "axpy", "elastic"]


def test_every_row_stands_beside_its_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    assert cli.main(["bench", "--sizes", "4K,1M", "--repeat", "2", *files]) == 0
    data = json.loads((tmp_path / "a.json").read_text())
    rows = [(row["transport"], row["bytes"], row["op"]) for row in data["rows"]]
    assert rows == [(t, s, op) for t in ("shm", "tcp") for s in (4096, 1 << 20) for op in OPS]
    for row in data["rows"]:
        assert row["ours"] > 0
        assert row["bound"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["bound"], rel=0.05, abs=0.02)
        assert row["pairs"] == 2
    assert set(data["latency_us"]) == {
        f"{t} {name}" for t in ("shm", "tcp") for name in ("counter add", "axpy 4 KiB")
    }
    assert data["cores"] >= 1
    assert data["publishable"] == (max(data["load_start"], data["load_end"]) <= 2.5)
    shown, page = capsys.readouterr().out, (tmp_path / "a.md").read_text()
    for text in (data["cpu"], "load average", "memcpy", "socket both ways", "1 MiB", "elastic"):
        assert text in " ".join(shown.split())
        assert text in page
    assert "\033[" not in shown


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--sizes", "big"], "--sizes big: no size - allowed: multiples of 4 bytes"),
        (["--sizes", "4K,,1M"], "--sizes "),
        (["--sizes", "3"], "--sizes 3"),
        (["--sizes", "64G"], "--sizes 64G"),
        (["--transports", "shm,mpi"], "--transports mpi: cannot be measured - allowed: shm, tcp"),
        (["--repeat", "0"], "--repeat 0"),
        (["--repeat", "-3"], "--repeat"),
        (["--sises", "1M"], "unrecognized arguments"),
        (["--json"], "expected one argument"),
        (["--sizes", "4K", "--transports", "shm", "--repeat", "1", "--json", "/no/x"], "/no/x: No"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dlp: error: ")
    assert text in line
    assert " - do: " in line


def test_a_lost_box_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(self: SharedBuffer, *_: Any) -> None:
        raise PeerLost("memory box shm://x is gone: - allowed: - do:")

    monkeypatch.setattr(SharedBuffer, "elastic", lost)
    assert cli.main(["bench", "--sizes", "4K", "--transports", "shm", "--repeat", "1"]) == 4
    assert capsys.readouterr().err == ("dlp: error: memory box shm://x is gone: - allowed: - do:\n")


def test_help_is_quick_and_needs_no_numpy() -> None:
    code = (
        "import sys\nfrom dlplatform.cli import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'numpy', 'torch', 'rich'} & set(sys.modules)"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - begin < 3  # 0.2 s on an idle machine
    for option in ("--sizes", "--transports", "--repeat", "--json", "--markdown"):
        assert option in done.stdout


def test_measurements_alternate_and_the_fastest_bound_counts() -> None:
    order: list[str] = []

    def fake(name: str, seconds: float) -> bench.Call:
        def call() -> None:
            order.append(name)
            time.sleep(seconds)

        return call

    row = bench.Row("tcp", "elastic", 1 << 20, "socket")
    bench.measure(row, fake("ours", 0.002), [fake("slow", 0.02), fake("fast", 0.001)], 3)
    assert order == ["ours", "slow", "fast"] * 4  # once to warm up
    assert row.summary()["pairs"] == 3
    assert row.summary()["ratio"] == pytest.approx(0.5, abs=0.25)
    assert max(row.bound) < 0.015


def test_a_row_stops_in_time_but_not_before_five_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROW_S", 0.0)
    row = bench.Row("shm", "read", 1 << 20, "memcpy")
    bench.measure(row, lambda: None, [lambda: None], 100)
    assert len(row.ours) == len(row.bound) == bench.FEWEST


def test_a_noisy_machine_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (2.51, 0, 0))
    data = bench.Report().data()
    assert data["publishable"] is False
    assert "not to be published" in bench.verdict(data)
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (1.0, 9, 9))
    assert bench.verdict(bench.Report().data()) == "load average 1.0 at the start, 1.0 at the end"


@pytest.mark.parametrize(("size", "text"), [(4, "4 B"), (4096, "4 KiB"), (3 << 30, "3 GiB")])
def test_sizes_read_as_people_write_them(size: int, text: str) -> None:
    assert bench.human(size) == text
    assert bench.sizes_of(text.removesuffix("iB").removesuffix(" B").replace(" ", "")) == [size]


def test_the_raw_socket_moves_every_byte() -> None:
    data = bytes(range(256)) * 4096
    view = memoryview(bytearray(data))
    with RawSocket() as raw:
        for move in (raw.send, raw.drop, raw.echo, raw.duplex):
            move(view)
        raw.send(memoryview(bytearray(b"\x07" * len(data))))
        raw.receive(view)
        assert bytes(view) == b"\x07" * len(data)
        raw.send(memoryview(bytearray(data)))
        raw.duplex(view)  # sends sevens, gets the data
        process = raw._process
    assert process.poll() == 0
