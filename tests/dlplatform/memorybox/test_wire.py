from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlplatform.errors import BoxError, EnvironmentMissing, PeerLost, UsageError
from dlplatform.memorybox import wire

Pair = tuple[socket.socket, socket.socket]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.settimeout(5)
        yield ours, theirs


@settings(max_examples=25, deadline=None)
@given(frame=st.dictionaries(st.text(), values))
def test_frames_arrive_as_they_were_sent(frame: wire.Frame) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, frame)
        assert wire.receive(theirs) == frame


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (struct.pack("<I", wire.LONGEST + 1), f"allowed {wire.LONGEST}"),
        (b"\xff\xff\xff\xff", "frame of 4294967295 bytes"),
        (struct.pack("<I", 1) + b"\xc1", "not msgpack"),
        (struct.pack("<I", 2) + b"\x80\x80", "not msgpack"),
        (struct.pack("<I", 5) + msgpack.packb("text"), "holds a str"),
        (struct.pack("<I", 3) + b"\x81\x01\x02", "not msgpack"),
        (struct.pack("<I", 3000) + b"\x91" * 3000, "not msgpack"),
        (struct.pack("<I", 5) + b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (struct.pack("<I", 100) + b"short", "closed the connection"),
        (b"\x01", "closed the connection"),
    ],
)
def test_bad_frames_end_the_connection(pair: Pair, data: bytes, text: str) -> None:
    ours, theirs = pair
    ours.sendall(data)
    ours.close()
    with pytest.raises(ConnectionError, match=text):
        wire.receive(theirs)


def test_too_long_a_frame_is_not_sent(pair: Pair) -> None:
    with pytest.raises(UsageError, match="allowed: 1048576"):
        wire.send(pair[0], {"x": b"." * (1 << 20)})


def handshake(pair: Pair, ours: bytes, theirs: bytes) -> tuple[list[bool], BaseException | None]:
    """Let a worker with one secret meet a box with another."""
    welcomed: list[bool] = []
    box = threading.Thread(target=lambda: welcomed.append(wire.welcome(pair[1], theirs)))
    box.start()
    failure: BaseException | None = None
    try:
        wire.introduce(pair[0], ours, "tcp://there")
    except (UsageError, PeerLost) as error:
        failure = error
    box.join(5)
    return welcomed, failure


def test_equal_secrets_shake_hands(pair: Pair) -> None:
    assert handshake(pair, b"secret", b"secret") == ([True], None)


def test_different_secrets_part(pair: Pair) -> None:
    welcomed, failure = handshake(pair, b"secret", b"Secret")
    assert welcomed == [False]
    assert isinstance(failure, UsageError)
    assert "tcp://there refused this job's secret - allowed: " in str(failure)


def answers(pair: Pair, *frames: wire.Frame) -> None:
    def speak() -> None:
        wire.send(pair[1], frames[0])
        with suppress(OSError):  # the worker may hang up at once
            wire.receive(pair[1])
            for frame in frames[1:]:
                wire.send(pair[1], frame)

    threading.Thread(target=speak, daemon=True).start()


@pytest.mark.parametrize("proof", [{}, {"proof": "text"}, {"proof": b""}, {"proof": b"x" * 32}])
def test_a_false_box_is_not_believed(pair: Pair, proof: wire.Frame) -> None:
    answers(pair, {"box": wire.VERSION, "nonce": b"n" * 32}, proof)
    with pytest.raises(UsageError, match="refused"):
        wire.introduce(pair[0], b"secret", "tcp://there")


def test_an_echo_of_our_own_proof_is_not_believed(pair: Pair) -> None:
    def mirror() -> None:
        wire.send(pair[1], {"box": wire.VERSION, "nonce": b"n" * 32})
        wire.send(pair[1], {"proof": wire.receive(pair[1])["proof"]})

    threading.Thread(target=mirror, daemon=True).start()
    with pytest.raises(UsageError, match="refused"):
        wire.introduce(pair[0], b"secret", "tcp://there")


@pytest.mark.parametrize("offer", [{}, {"box": 99, "nonce": b"n" * 32}, {"box": 1, "nonce": 5}])
def test_another_version_is_named(pair: Pair, offer: wire.Frame) -> None:
    answers(pair, offer)
    with pytest.raises(PeerLost, match="speaks version"):
        wire.introduce(pair[0], b"secret", "tcp://there")


@pytest.mark.parametrize(
    ("kind", "error"),
    [("BoxError", BoxError), ("EnvironmentMissing", EnvironmentMissing), ("UsageError", UsageError),
     ("annotations", BoxError), ("os", BoxError), (None, BoxError), ("ValueError", BoxError)],
)  # fmt: skip
def test_refusals_become_their_error(kind: object, error: type[Exception]) -> None:
    made = wire.refusal({"refused": "because", "kind": kind})
    assert type(made) is error
    assert str(made) == "because"


def test_a_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "secret"
    first = wire.load_secret(str(file), create=True)
    assert len(first) == 64
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o077 == 0
    assert wire.load_secret(str(file), create=True) == wire.load_secret(str(file)) == first


def test_bad_secret_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        wire.load_secret(str(tmp_path / "missing"))
    for text, mode in (("", 0o600), ("secret", 0o644)):
        file = tmp_path / f"{mode:o}"
        file.write_text(text)
        os.chmod(file, mode)
        with pytest.raises(UsageError, match=r"allowed: mode 0600 - do: chmod 600"):
            wire.load_secret(str(file))


def test_a_secret_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(wire.SECRET, "from outside")
    assert wire.load_secret("") == b"from outside"
    file = tmp_path / "secret"
    made = wire.load_secret(str(file), create=True)
    assert made != b"from outside"  # a named file comes first
