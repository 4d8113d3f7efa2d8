"""Queue pairs: what a transport needs of RDMA verbs, and nothing more (pyverbs, 44 and later).

An ``Adapter`` is an opened device with a protection domain: it registers memory. A ``QueuePair``
is one reliable connection of it. Work is posted and completed later, in order; a file descriptor
tells when there is something to collect, so that whoever waits sleeps without the interpreter
lock. pyverbs is never imported before it is needed.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import threading
from contextlib import suppress
from typing import Any, NamedTuple

from dlplatform.memorybox.box import WRONG_VALUES
from dlplatform.memorybox.memory import Memory, Pinned
from dlplatform.transports.verbs.fabric import Outlet, context, lock_refused, opening, verbs

READS = 16
"""RDMA READs and atomics that a queue pair has on their way, where the device lets it."""
TIMEOUT, RETRIES, NOT_READY, FOREVER = 16, 7, 12, 7
"""Of the wire: 4 us * 2^16 and seven times that before a connection counts as broken."""
READ, WRITE, WRITE_NOTE, ADD, SWAP = "read", "write", "write_note", "add", "swap"
OPCODES = {
    READ: "RDMA_READ", WRITE: "RDMA_WRITE", WRITE_NOTE: "RDMA_WRITE_WITH_IMM",
    ADD: "ATOMIC_FETCH_AND_ADD", SWAP: "ATOMIC_CMP_AND_SWP",
}  # fmt: skip


class Done(NamedTuple):
    """A completion: of work posted here (``id``), or a note from the other side (``id`` 0)."""

    id: int
    note: int
    failed: str = ""
    """What went wrong; the queue pair does nothing more."""


class Adapter:
    """A device opened at one of its outlets; see ``adapter``."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet, self.context = outlet, context(outlet.device)
        self.domain = verbs().pd.PD(self.context)
        port = self.context.query_port(outlet.port)
        self.mtu, self.lid = int(port.active_mtu), int(port.lid)
        can = self.context.query_device()
        self.reads = min(READS, can.max_qp_rd_atom), min(READS, can.max_qp_init_rd_atom)
        """How many it takes part in: asked by the other side, asking itself."""

    def register(self, address: int, size: int, remote: str = "") -> Any:
        """Register memory; the result has ``lkey``, ``rkey`` and ``close()``.

        Args:
            address: of the first byte.
            size: bytes.
            remote: what the other side may do: ``read``, ``write``, ``add``; nothing else.

        Raises:
            EnvironmentMissing: when so much memory cannot be locked.
        """
        v = verbs()
        allowed = {
            "read": v.e.IBV_ACCESS_REMOTE_READ, "write": v.e.IBV_ACCESS_REMOTE_WRITE,
            "add": v.e.IBV_ACCESS_REMOTE_ATOMIC, "": 0,
        }  # fmt: skip
        access = v.e.IBV_ACCESS_LOCAL_WRITE | allowed[remote]
        try:
            return v.mr.MR(self.domain, size, access, address)
        except v.pyverbs_error.PyverbsRDMAError as error:
            raise lock_refused(size, os.strerror(error.error_code)) from None

    def pin(self, memory: Pinned, remote: str = "") -> Any:
        """Register memory until it goes; once, however often it is asked for."""
        with opening:
            key = (self, remote)
            if key not in memory.pins:
                memory.pins[key] = self.register(memory.address, memory.size, remote)
            return memory.pins[key]


def holding(address: int, size: int) -> Memory | None:
    """Return the object whose memory a span is in, if any: it stays where it is."""
    for found in Memory.living.valuerefs():
        one = found()
        if one and one.address <= address and address + size <= one.address + one.size:
            return one
    return None


@functools.cache
def _opened(outlet: Outlet) -> Adapter:
    return Adapter(outlet)


def adapter(outlet: Outlet) -> Adapter:
    """Return this process's adapter at an outlet; it stays open."""
    with opening:
        return _opened(outlet)


def _event_files() -> set[int]:
    """Return the descriptors of this process from which events of devices are read."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
    return found


class QueuePair:
    """One reliable connection: made here, then connected with the other side's ``card``.

    Args:
        end: the adapter.
        depth: work requests that may be on their way, notes that may be waiting.
    """

    def __init__(self, end: Adapter, depth: int) -> None:
        v = verbs()
        self.end, self._v = end, v
        self._posting, self._closed = threading.Lock(), False
        try:
            # pyverbs keeps the channel's descriptor to itself, and waits in it with the
            # interpreter lock held. Here it is found, and waited for with poll.
            with opening:
                before = _event_files()
                self._channel = v.cq.CompChannel(end.context)
                (self.events,) = _event_files() - before
            os.set_blocking(self.events, False)
            self._queue = v.cq.CQ(end.context, 2 * depth, None, self._channel, 0)
            self._queue.req_notify()
            cap = v.qp.QPCap(depth, depth, 1, 1)
            wanted = v.qp.QPInitAttr(v.e.IBV_QPT_RC, None, self._queue, self._queue, cap=cap)
            self._pair = v.qp.QP(end.domain, wanted)
        except v.pyverbs_error.PyverbsRDMAError as error:
            raise lock_refused(0, str(error)) from None
        # One request serves all posts: a post copies it. pyverbs frees none of them by itself.
        self._part = v.wr.SGE(0, 0, 0)
        self._request = v.wr.SendWR(num_sge=1, sg=[self._part])
        self._request.close()
        self._request.sg_list = self._part
        self._note = v.wr.RecvWR(num_sge=1, sg=[self._part])
        self._note.num_sge = 0
        self._opcodes = {k: getattr(v.e, f"IBV_WR_{name}") for k, name in OPCODES.items()}
        self._depth = depth

    @property
    def card(self) -> dict[str, Any]:
        """Return what the other side has to know to connect."""
        end = self.end
        return {"qpn": self._pair.qp_num, "gid": end.outlet.gid, "lid": end.lid, "mtu": end.mtu,
                "reads": end.reads[0]}  # fmt: skip

    def connect(self, card: dict[str, Any]) -> None:
        """Connect with the queue pair of a card; it has to do the same with ours.

        Raises:
            ConnectionError: when it cannot be reached from here.
        """
        v, port = self._v, self.end.outlet.port
        attr = v.qp.QPAttr(port_num=port)
        e = v.e
        attr.qp_access_flags = (
            e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_ATOMIC
        )
        attr.max_dest_rd_atomic = self.end.reads[0]
        attr.min_rnr_timer, attr.timeout = NOT_READY, TIMEOUT
        attr.retry_cnt, attr.rnr_retry = RETRIES, FOREVER
        try:
            attr.dest_qp_num = int(card["qpn"])
            attr.max_rd_atomic = min(int(card["reads"]), self.end.reads[1])
            attr.path_mtu = min(int(card["mtu"]), self.end.mtu)
            route = v.addr.GlobalRoute(
                dgid=v.addr.GID(full(card["gid"])), sgid_index=self.end.outlet.index, hop_limit=64
            )
            attr.ah_attr = v.addr.AHAttr(
                gr=route, is_global=1, port_num=port, dlid=int(card["lid"])
            )
            self._pair.to_init(attr)
            for _ in range(self._depth):
                self.expect()
            self._pair.to_rtr(attr)
            self._pair.to_rts(attr)
        except (v.pyverbs_error.PyverbsError, *WRONG_VALUES) as error:
            where = card.get("gid") if isinstance(card, dict) else card
            raise ConnectionError(f"queue pair at {where}: {error}") from None

    def post(
        self, what: str, id: int, local: tuple[int, int, int], remote: tuple[int, int],
        note: int = 0, operands: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        """Post work: it is done after what was posted before, and completes under its ``id``.

        Args:
            what: READ, WRITE, WRITE_NOTE, ADD or SWAP.
            id: above 0.
            local: address, bytes (0: none) and lkey.
            remote: address and rkey.
            note: 32 bits that wake the other side, with WRITE_NOTE.
            operands: what to add; or what to compare with, and the new value.
        """
        with self._posting:
            if self._closed:
                raise ConnectionError("queue pair: closed here")
            part, request = self._part, self._request
            part.addr, part.length, part.lkey = local
            request.num_sge = 1 if local[1] else 0
            request.wr_id, request.opcode, request.imm_data = id, self._opcodes[what], note
            if what in (ADD, SWAP):
                request.set_wr_atomic(remote[1], remote[0], *operands)
            else:
                request.set_wr_rdma(remote[1], remote[0])
            try:
                self._pair.post_send(request)
            except self._v.pyverbs_error.PyverbsError as error:
                raise ConnectionError(f"queue pair: {error}") from None

    def expect(self) -> None:
        """Be ready for one more note."""
        self._pair.post_recv(self._note)

    def collect(self) -> list[Done]:
        """Return what has completed since the last call, and be told of the next completion."""
        found: list[Any] = []
        try:
            self._rearm()
            while (batch := self._queue.poll(self._depth))[0]:
                found += batch[1]
        except self._v.pyverbs_error.PyverbsError as error:
            raise ConnectionError(f"completion queue: {error}") from None
        return [self._done(one) for one in found]

    def _done(self, one: Any) -> Done:
        if one.status != self._v.e.IBV_WC_SUCCESS:
            text = self._v.cq.cqe_status_to_str(one.status)
            return Done(one.wr_id, 0, f"queue pair {self._pair.qp_num}: {text}")
        if one.opcode != self._v.e.IBV_WC_RECV_RDMA_WITH_IMM:
            return Done(one.wr_id, 0)
        self.expect()
        return Done(0, one.imm_data)

    def _rearm(self) -> None:
        """Take an event that has come, then ask for the next: what comes between is polled."""
        with suppress(self._v.pyverbs_error.PyverbsRDMAError):  # none has come
            self._channel.get_cq_event(self._queue)
            self._queue.ack_events(1)
        self._queue.req_notify()

    def tear(self) -> None:
        """Break the connection: everything on its way fails, here and on the other side."""
        attr = self._v.qp.QPAttr(qp_state=self._v.e.IBV_QPS_ERR)
        with self._posting:
            if not self._closed:
                self._pair.modify(attr, self._v.e.IBV_QP_STATE)

    def close(self) -> None:
        """Give everything back; nothing may be collected any more."""
        with self._posting:
            if not self._closed:
                self._closed = True
                for one in (self._pair, self._queue, self._channel, self._note, self._part):
                    one.close()


def full(gid: str) -> str:
    """Return a GID with all its digits, as pyverbs wants it."""
    return ipaddress.IPv6Address(gid).exploded
