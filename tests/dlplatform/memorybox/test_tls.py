"""Boxes at tls://: who is believed, what is on the wire, and what happens when it breaks."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from places import Place, at, certificate, content, held, made, random, spawn, wait_for

from dlplatform.errors import BoxError, PeerLost, UsageError
from dlplatform.memorybox import tls, wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def boxes(files: tuple[str, str]) -> Iterator[Boxes]:
    with Boxes(1, "tls", options=("--tls-cert", files[0], "--tls-key", files[1])) as started:
        yield started


@pytest.fixture(scope="module")
def plain() -> Iterator[Boxes]:
    with Boxes(1, "tcp") as started:
        yield started


@pytest.fixture
def place(boxes: Boxes, files: tuple[str, str]) -> Place:
    return Place("tls", boxes.addresses, boxes.secret, list(boxes.processes), files[0])


def port(boxes: Boxes) -> int:
    return int(boxes.addresses[0].rpartition(":")[2])


def enter(uri: str, boxes: Boxes, ca: str, job: str = "job") -> Cluster:
    return Cluster([uri], job, boxes.secret.encode(), 10, ca=ca)


# -- who is believed -----------------------------------------------------------------------------


def one_line(uri: str, boxes: Boxes, ca: str, text: str) -> None:
    begin = time.monotonic()
    with pytest.raises(UsageError, match=text) as error:
        enter(uri, boxes, ca)
    assert time.monotonic() - begin < 8
    assert "\n" not in str(error.value)
    assert " - allowed: " in str(error.value)
    assert " - do: " in str(error.value)


def test_a_certificate_of_somebody_else_is_not_believed(boxes: Boxes, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path)
    one_line(boxes.addresses[0], boxes, other, "certificate is not believed: self-signed")


def test_the_system_does_not_vouch_for_a_certificate_of_ones_own(boxes: Boxes) -> None:
    one_line(boxes.addresses[0], boxes, "", "vouched for by the system - do: .*cluster.ca=FILE")


def test_a_certificate_for_another_host_is_not_believed(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "box.example")
    with Boxes(1, "tls", options=("--tls-cert", cert, "--tls-key", key)) as boxes:
        one_line(boxes.addresses[0], boxes, cert, "allowed: one for 127.0.0.1")


def test_a_worker_without_tls_is_told_so(boxes: Boxes) -> None:
    uri = boxes.addresses[0].replace("tls:", "tcp:")
    one_line(uri, boxes, "", f"{uri} speaks tls only - allowed: tls://HOST:PORT")


def test_a_box_without_tls_is_recognised(plain: Boxes, files: tuple[str, str]) -> None:
    uri = plain.addresses[0].replace("tcp:", "tls:")
    one_line(uri, plain, files[0], f"{uri} does not speak tls: ")
    enter(plain.addresses[0], plain, "").close()  # and it is none the worse for it


@pytest.mark.parametrize("name", ["missing.pem", "rubbish.pem"])
def test_a_bad_file_of_an_authority_is_named(boxes: Boxes, tmp_path: Path, name: str) -> None:
    (tmp_path / "rubbish.pem").write_text("no certificate")
    one_line(boxes.addresses[0], boxes, str(tmp_path / name), f"cluster.ca=.*{name}: ")


def test_the_authority_may_come_from_the_environment(
    boxes: Boxes, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tls.CA, files[0])
    enter(boxes.addresses[0], boxes, "").close()


def test_the_secret_is_still_asked_for(boxes: Boxes, files: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="refused this job's secret"):
        Cluster(boxes.addresses, "job", b"wrong", 5, ca=files[0])


def test_old_versions_of_tls_are_not_spoken(files: tuple[str, str]) -> None:
    for context in (tls.server_context(*files), tls.client_context(files[0])):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert tls.client_context(files[0]).check_hostname
    assert tls.client_context(files[0]).verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" * 99])
def test_strangers_at_the_port_hinder_nobody(place: Place, boxes: Boxes, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port(boxes))) as stranger:
        stranger.sendall(data)
        begin = time.monotonic()
        enter(place.addresses[0], boxes, place.ca).close()
        assert time.monotonic() - begin < 2
    assert boxes.processes[0].poll() is None


# -- bytes ---------------------------------------------------------------------------------------


class Middleman:
    """Passes bytes on between a worker and a box, keeps them, and cuts once after so many."""

    def __init__(self, target: int, cut_after: int = 1 << 62) -> None:
        self.target, self.cut_after = target, cut_after
        self.seen, self.cuts = bytearray(), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.seen += data
                if len(self.seen) > self.cut_after and not self.cuts:
                    self.cuts += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def between(boxes: Boxes) -> Iterator[Callable[[int], Middleman]]:
    started = []

    def start(cut_after: int = 1 << 62, target: int = port(boxes)) -> Middleman:
        started.append(Middleman(target, cut_after))
        return started[-1]

    yield start
    for middleman in started:
        middleman.close()


def test_nothing_can_be_read_on_the_wire(
    boxes: Boxes, plain: Boxes, files: tuple[str, str], between: Callable[..., Middleman]
) -> None:
    data = np.full(5000, 1.2345, np.float32)
    for where, scheme, readable in ((boxes, "tls", False), (plain, "tcp", True)):
        middleman = between(target=port(where))
        cluster = enter(f"{scheme}://127.0.0.1:{middleman.port}", where, files[0], "secretjob")
        assert np.array_equal(content(made(cluster, "w", data)), data)
        cluster.close()
        assert (data[:64].tobytes() in middleman.seen) == readable
        assert (b"secretjob" in middleman.seen) == readable
        assert len(middleman.seen) > data.nbytes


def test_a_connection_cut_in_the_middle_of_an_update_is_taken_up_again(
    boxes: Boxes, files: tuple[str, str], between: Callable[..., Middleman]
) -> None:
    size = 4 << 20
    middleman = between(cut_after=6 << 20)
    cluster = enter(f"tls://127.0.0.1:{middleman.port}", boxes, files[0], "cut")
    buffer, x = cluster.buffer("w", size, True), random(1, size)
    buffer.axpy(1.0, at(x))
    assert middleman.cuts == 1
    assert np.array_equal(content(buffer), x)  # done once, wholly
    cluster.close()


def test_large_updates_and_reads_at_the_same_time_are_exact(place: Place, boxes: Boxes) -> None:
    size = 3 << 20
    cluster = enter(place.addresses[0], boxes, place.ca, "large")
    wrong: list[int] = []

    def work(number: int) -> None:
        data = random(number, size)
        buffer = made(cluster, f"w{number}", data)
        for _ in range(3):
            pulled = data.copy()
            buffer.elastic(0.5, at(pulled))  # both ways at once, equal values do not move
            if not (np.array_equal(pulled, data) and np.array_equal(content(buffer), data)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    cluster.close()


def test_memory_is_not_handed_out_over_tls(place: Place, boxes: Boxes) -> None:
    cluster = enter(place.addresses[0], boxes, place.ca, "map")
    assert not cluster.mapped
    with pytest.raises(BoxError, match="map over tcp"):
        cluster.transports[0].link.ask("map", {})  # type: ignore[attr-defined]
    cluster.close()


# -- deaths --------------------------------------------------------------------------------------

HOLD = """
import time
def main(cluster, rank):
    cluster.join(rank, 1)
    cluster.buffer("w", 1 << 20, True)
    print("there", flush=True)
    time.sleep(60)
"""


def test_a_killed_worker_leaves_nothing(place: Place, boxes: Boxes) -> None:
    worker = spawn(place, "killed", HOLD, 0)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "there\n"
    witness = enter(place.addresses[0], boxes, place.ca, "witness")
    assert held(witness) >= 4 << 20
    worker.kill()
    worker.wait()
    worker.stdout.close()
    wait_for(lambda: held(witness) == 0, 5)
    witness.close()


def test_a_killed_box_is_noticed_at_once(files: tuple[str, str]) -> None:
    with Boxes(1, "tls", options=("--tls-cert", files[0], "--tls-key", files[1])) as boxes:
        cluster = enter(boxes.addresses[0], boxes, files[0])
        boxes.processes[0].kill()
        boxes.processes[0].wait()
        with pytest.raises(PeerLost, match="is gone"):
            wait_for(lambda: cluster.check() is not None, 5)
        cluster.close()


def test_a_relay_that_ends_leaves_no_thread_and_no_socket(files: tuple[str, str]) -> None:
    threads = threading.active_count()
    near, far = socket.socketpair()
    server = tls.Relay(far, tls.server_context(*files))
    shaking = threading.Thread(target=server.shake_hands)
    shaking.start()
    ours = tls.connect(near, "tls://127.0.0.1", "127.0.0.1", files[0])
    shaking.join(5)
    theirs = server.start()
    with closing(ours), closing(theirs):
        wire.send(ours, {"x": b"y" * 100_000})
        assert wire.receive(theirs) == {"x": b"y" * 100_000}
        assert ours.family == socket.AF_INET
        wire.send(theirs, {"last": True})
        theirs.close()
        assert wire.receive(ours) == {"last": True}  # what was sent before the end arrives
        assert ours.recv(1) == b""
    wait_for(lambda: threading.active_count() <= threads)
    assert (near.fileno(), far.fileno()) == (-1, -1)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--bind tls://127.0.0.1:0", "without a certificate"),
        ("--bind tls://127.0.0.1:0 --tls-cert CERT", "without a certificate"),
        ("--bind tcp://127.0.0.1:0 --tls-cert CERT --tls-key KEY", "without --bind tls://"),
        ("--bind tls://127.0.0.1:0 --tls-cert CERT --tls-key CERT", "PEM files"),
        ("--bind tls://127.0.0.1:0 --tls-cert CERT --tls-key /nowhere", "No such file"),
    ],
)
def test_wrong_certificates_are_one_line(
    files: tuple[str, str], tmp_path: Path, options: str, text: str
) -> None:
    words = options.replace("CERT", files[0]).replace("KEY", files[1]).split()
    command = [sys.executable, "-m", "dlplatform.memorybox", *words]
    secret = ["--secret-file", str(tmp_path / "secret")]
    done = subprocess.run([*command, *secret], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert text in line
    assert " - do: " in line
