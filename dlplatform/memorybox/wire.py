"""Frames and the handshake: how a worker and a box talk over a socket.

A frame is a 4-byte little-endian length and that many bytes of msgpack (a map). Bulk data
follow their request as raw bytes. Nothing is pickled and every length is bounded.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgpack

from dlplatform import errors
from dlplatform.errors import BoxError, PeerLost, PlatformError, UsageError

VERSION = 2
LONGEST, GREETING = 1 << 20, 512
AHEAD, LOCAL_BUFFER = 1 << 16, 1 << 18
SECRET = "DLP_SECRET"
FAR = ("tcp", "tls", "verbs")
"""Schemes of addresses with a host and a port."""
Frame = dict[str, Any]


class Wire(Protocol):
    """What frames go over: a socket, or any conduit."""

    def sendall(self, data: bytes, flags: int = 0, /) -> None:
        """Send bytes."""

    def recv(self, count: int, /) -> bytes:
        """Receive some bytes, at most ``count``; none: the other side has hung up."""


def send(connection: Wire, frame: Frame, more: bool = False) -> None:
    """Send one frame; with ``more``, keep it back for the bytes that follow at once."""
    body = msgpack.packb(frame, use_bin_type=True)
    if len(body) > LONGEST:
        raise UsageError(
            f"a message of {len(body)} bytes to a memory box - allowed: {LONGEST} - do: move bulk "
            "data through a buffer"
        )
    connection.sendall(struct.pack("<I", len(body)) + body, socket.MSG_MORE if more else 0)


def receive(connection: Wire, longest: int = LONGEST) -> Frame:
    """Receive one frame; a closed connection is a ConnectionError, a bad frame too."""
    (length,) = struct.unpack("<I", _exactly(connection, 4))
    if length > longest:
        raise ConnectionError(f"frame of {length} bytes, allowed {longest}")
    try:
        frame = msgpack.unpackb(_exactly(connection, length), raw=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ConnectionError(f"frame is not msgpack: {error}") from None
    if not isinstance(frame, dict):
        raise ConnectionError(f"frame holds a {type(frame).__name__}, allowed: a map")
    return frame


def _exactly(connection: Wire, count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = connection.recv(missing)
        if not part:
            raise ConnectionResetError("the other side closed the connection")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _proof(secret: bytes, side: str, *nonces: bytes) -> bytes:
    return hmac.digest(secret, side.encode() + b"".join(nonces), "sha256")


def _bytes(frame: Frame, name: str) -> bytes:
    value = frame.get(name)
    return value if isinstance(value, bytes) else b""


def welcome(connection: Wire, secret: bytes) -> bool:
    """Let a worker prove that it knows the secret, and prove the same (HMAC-SHA256)."""
    ours = secrets.token_bytes(32)
    send(connection, {"box": VERSION, "nonce": ours})
    answer = receive(connection, GREETING)
    theirs, proof = _bytes(answer, "nonce"), _bytes(answer, "proof")
    if not hmac.compare_digest(proof, _proof(secret, "worker", ours, theirs)):
        send(connection, {"refused": "wrong secret"})
        return False
    send(connection, {"proof": _proof(secret, "box", theirs, ours)})
    return True


def introduce(connection: Wire, secret: bytes, uri: str) -> None:
    """Prove to a box that this worker knows the secret, and check the box's proof."""
    offer = receive(connection, GREETING)
    theirs = _bytes(offer, "nonce")
    if offer.get("tls"):
        raise UsageError(
            f"{uri} speaks tls only - allowed: tls://HOST:PORT - do: write tls:// and give the "
            "file of the box's authority as cluster.ca=FILE"
        )
    if offer.get("box") != VERSION or not theirs:
        raise PeerLost(
            f"{uri} speaks version {offer.get('box')} - allowed: {VERSION} - do: run the same "
            "dlplatform on both sides"
        )
    ours = secrets.token_bytes(32)
    send(connection, {"nonce": ours, "proof": _proof(secret, "worker", theirs, ours)})
    answer = receive(connection, GREETING)
    if not hmac.compare_digest(_bytes(answer, "proof"), _proof(secret, "box", ours, theirs)):
        raise UsageError(
            f"{uri} refused this job's secret - allowed: the secret the box was started with - "
            "do: give its file as cluster.secret_file=... (dlp box VERB: --secret-file FILE)"
        )


def connect(uri: str, timeout_s: float, ca: str = "") -> socket.socket:
    """Open a socket to ``shm://NAME``, ``tcp://HOST:PORT`` or ``tls://HOST:PORT``.

    ``ca`` is the file of the authority that vouches for a tls box.
    """
    parts = urlsplit(uri)
    if parts.scheme == "shm":
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(timeout_s)
        try:
            link.connect(f"\0dlp/{parts.netloc}")
        except BaseException:
            link.close()
            raise
    else:
        link = socket.create_connection((parts.hostname or "", parts.port or 0), timeout_s)
    keep_alive(link)
    if parts.scheme == "tls":
        from dlplatform.memorybox import tls

        return tls.connect(link, uri, parts.hostname or "", ca)
    return link


def keep_alive(link: socket.socket) -> None:
    """Notice a vanished host within about 15 s, and send small frames at once."""
    if link.family == socket.AF_UNIX:
        return
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 5),
        (socket.TCP_KEEPINTVL, 3),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 15_000),
    ):
        link.setsockopt(socket.IPPROTO_TCP, option, value)
    if link.getpeername()[0].startswith("127."):
        # On one host bytes that wait in a small buffer are still in the cache when they are read.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER)


def refusal(frame: Frame) -> PlatformError:
    """Turn a refused reply into the error it stands for."""
    kind = getattr(errors, str(frame.get("kind")), BoxError)
    known = isinstance(kind, type) and issubclass(kind, PlatformError)
    return (kind if known else BoxError)(str(frame.get("refused")))


def default_secret_file() -> str:
    """Return where the secret is kept when no file is named."""
    return os.environ.get("DLP_SECRET_FILE") or str(Path.home() / ".dlplatform" / "secret")


def load_secret(path: str = "", create: bool = False) -> bytes:
    """Return a secret: from a file only its owner can read, or what a launcher passed on.

    Args:
        path: the file; empty: the environment's DLP_SECRET, else ~/.dlplatform/secret.
        create: make the file if it is missing.
    """
    if not path and os.environ.get(SECRET):
        return os.environ[SECRET].encode()
    file = Path(path or default_secret_file())
    if not path and not create and not file.exists():
        return b""  # the box will refuse it, once there is a box
    if create and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(32) + "\n")
    try:
        text, mode = file.read_text().strip(), file.stat().st_mode
    except OSError as error:
        raise UsageError(
            f"cluster.secret_file={file}: {error.strerror} - allowed: the file the boxes were "
            "started with - do: copy it here, or start the boxes first"
        ) from None
    if mode & 0o077 or not text:
        raise UsageError(
            f"cluster.secret_file={file}: empty, or readable by others - allowed: mode 0600 - do: "
            f"chmod 600 {file}"
        )
    return text.encode()
