"""TLS for boxes that listen on ``tls://HOST:PORT``: a relay inside each process.

The data plane sends bare bytes from C on a file descriptor. So a box and a worker keep an
ordinary socket each, and two threads carry its bytes through TLS to the other side. The secret of
the box is proved inside, as without TLS.
"""

from __future__ import annotations

import functools
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress

from dlplatform.errors import UsageError
from dlplatform.memorybox import wire

CA = "DLP_CA"
PIECE, RECORD, HELLO = 1 << 18, 1 << 14, 0x16
SILENCE_MS = 3000
"""A TLS client speaks first; who says nothing for so long waits for a box without TLS."""


class Relayed(socket.socket):
    """The near end of a relay; it stands for the connection behind it, which is no local one."""

    @property
    def family(self) -> socket.AddressFamily:
        """Return the family of the connection behind the relay."""
        return socket.AF_INET


class Relay:
    """Two threads between one socket with TLS and one without.

    Args:
        link: connected; the relay closes it.
        context: certificates, and what is believed.
        host: name that the other side's certificate must have; empty: this side is the box.
    """

    def __init__(self, link: socket.socket, context: ssl.SSLContext, host: str = "") -> None:
        self.link, self.incoming, self.outgoing = link, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_side=not host, server_hostname=host or None
        )
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._threads = 2

    def shake_hands(self) -> None:
        """Agree on keys; the timeout of the socket bounds every step."""
        while True:
            try:
                self.tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
                data = self.link.recv(PIECE)
                if not data:
                    raise ConnectionResetError("the other side closed the connection") from None
                self.incoming.write(data)
            except ssl.SSLError:
                with suppress(OSError):
                    self._flush()  # tells the other side why
                raise

    def start(self) -> socket.socket:
        """Relay from now on; return the end for the rest of this process."""
        near, self.pair = socket.socketpair()
        self.link.settimeout(None)
        try:
            for work in (self._outward, self._inward):
                threading.Thread(target=self._run, args=(work,), name="tls", daemon=True).start()
        except RuntimeError:
            raise ConnectionAbortedError("no thread left for tls") from None
        return Relayed(fileno=near.detach())

    def _run(self, work: Callable[[], None]) -> None:
        with suppress(OSError):
            work()
        for end in (self.pair, self.link):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._threads -= 1
            last = not self._threads
        if last:
            self.pair.close()
            self.link.close()

    def _outward(self) -> None:
        room = memoryview(bytearray(PIECE))
        while count := self.pair.recv_into(room):
            with self._lock:
                self.tls.write(room[:count])
            self._flush()
        with suppress(ssl.SSLError), self._lock:
            self.tls.unwrap()  # says goodbye, and does not wait for an answer
        self._flush()

    def _inward(self) -> None:
        more = True
        while more:
            data = self.link.recv(PIECE)
            with self._lock:
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
                plain, more = self._read()
            if plain:
                self.pair.sendall(plain)
            self._flush(wait=False)

    def _read(self) -> tuple[bytes, bool]:
        """Return what has come, and whether more may come."""
        parts: list[bytes] = []
        while True:
            try:
                part = self.tls.read(RECORD)
            except ssl.SSLWantReadError:
                return b"".join(parts), True
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b"".join(parts), False
            if not part:
                return b"".join(parts), False
            parts.append(part)

    def _flush(self, wait: bool = True) -> None:
        """Send what TLS wants to send; the order of its records is kept.

        The thread that receives never waits for the one that sends: who sends looks again.
        """
        while self.outgoing.pending:
            if not self._sending.acquire(blocking=wait):
                return
            try:
                with self._lock:
                    data = self.outgoing.read()
                self.link.sendall(data)
            finally:
                self._sending.release()


# -- the box's side ----------------------------------------------------------------------------


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return what a box needs to prove who it is: a certificate (chain) and its key, PEM files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise UsageError(
            f"--tls-cert {certificate} --tls-key {key}: {error.strerror or error} - allowed: a "
            "certificate and its key, both PEM files - do: correct the two paths"
        ) from None
    return context


def receive(link: socket.socket, context: ssl.SSLContext, timeout_s: float) -> socket.socket:
    """Welcome a TLS client; the socket to go on with. A client without TLS is told so."""
    try:
        link.settimeout(timeout_s)
        poll = select.poll()
        poll.register(link, select.POLLIN)
        if not poll.poll(SILENCE_MS):
            wire.send(link, {"box": wire.VERSION, "tls": True})
            raise ConnectionAbortedError("the client does not speak tls")
        if link.recv(1, socket.MSG_PEEK) != bytes([HELLO]):
            raise ConnectionAbortedError("the client speaks something else")
        relay = Relay(link, context)
        relay.shake_hands()
        return relay.start()
    except BaseException:
        link.close()
        raise


# -- the worker's side -------------------------------------------------------------------------


@functools.cache
def client_context(ca: str) -> ssl.SSLContext:
    """Return what a worker believes: the certificates in a PEM file; empty: the system's."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as error:
        raise UsageError(
            f"cluster.ca={ca}: {error.strerror or error} - allowed: a PEM file with the "
            "certificates that vouch for the boxes - do: correct the path (or DLP_CA)"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def connect(link: socket.socket, uri: str, host: str, ca: str) -> socket.socket:
    """Shake hands with a box; the socket to go on with.

    Raises:
        UsageError: when the box is not who it should be, or does not speak TLS.
    """
    ca, timeout_s = ca or os.environ.get(CA, ""), link.gettimeout()
    try:
        relay = Relay(link, client_context(ca), host)
        relay.shake_hands()
    except ssl.SSLCertVerificationError as error:
        link.close()
        raise UsageError(
            f"{uri}: its certificate is not believed: {error.verify_message} - allowed: one for "
            f"{host}, vouched for by {ca or 'the system'} - do: give the file of the authority as "
            "cluster.ca=FILE (or DLP_CA)"
        ) from None
    except ssl.SSLError as error:
        link.close()
        raise UsageError(
            f"{uri} does not speak tls: {error.reason or error} - allowed: a box started with "
            "--bind tls://... - do: correct the address, or write tcp:// for a box without tls"
        ) from None
    except BaseException:
        link.close()
        raise
    near = relay.start()
    near.settimeout(timeout_s)
    return near
