"""The C kernels, loaded with ctypes: every call releases the GIL and takes bare addresses.

Addresses are integers, lengths count fp32 elements unless a name says ``bytes``.
``kernels/reference.py`` says what each operation means.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)  # fmt: skip
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).with_name("_native.so")
CLOSED = -1000000
NONE = -1
STRIPE = 1 << 18
CHUNK = 1 << 16
PAGE = 4096
BLOCK8 = 256

OPERATIONS = {
    name: code
    for code, name in enumerate(
        (
            *("scal", "axpy", "axpby", "elastic", "difference", "merge", "fetch", "copy", "clip"),
            *("sgd", "outer", "adam", "delay", "settle", "gather", "adapt", "fold"),
        )
    )
}
OPERATION_NAMES = {code: name for name, code in OPERATIONS.items()}
FORMATS = {name: code for code, name in enumerate(("fp32", "fp16", "bf16", "int8", "topk"))}
FORMAT_NAMES = {code: name for name, code in FORMATS.items()}
STATES = {
    **dict.fromkeys(("sgd", "outer", "delay", "settle", "gather"), 1),
    **dict.fromkeys(("adam", "adapt", "fold"), 2),
}
"""Operations with state in the box, and how many vectors of it."""
ALONE = ("scal", "settle", "fold")
"""Operations without x."""


class Operation(ctypes.Structure):
    """What is done to a span: code, format of x, entries of a sparse x, scalars."""

    _fields_ = [
        ("code", c_int32), ("format", c_int32), ("entries", c_uint64), ("k", c_float * 8),
    ]  # fmt: skip


class SegmentMap(ctypes.Structure):
    """A segment as this process maps it: header, data, shadow."""

    _fields_ = [("header", c_void_p), ("data", c_void_p), ("shadow", c_void_p)]


Where = c_void_p * 4
"""y, its states, and None: addresses of SegmentMap."""


class Gate(ctypes.Structure):
    """A job's gate as one thread sees it: addresses of three counters."""

    _fields_ = [("epoch", c_void_p), ("shut", c_void_p), ("slot", c_void_p)]


class Update(ctypes.Structure):
    """One update that arrives as a stream; ``done`` elements of it are applied."""

    _fields_ = [
        ("operation", Operation), ("start", c_uint64), ("n", c_uint64), ("done", c_uint64),
        ("payload", c_void_p), ("answers", c_void_p), ("log", c_void_p), ("head", c_void_p),
        ("head_bytes", c_uint64), ("at", c_uint64), ("epoch", c_uint32),
    ]  # fmt: skip


class Conduit(ctypes.Structure):
    """What carries a lane: a socket (``fd``), or the addresses of slots in and out."""

    _fields_ = [
        ("fd", c_int32), ("ms", c_int32), ("inward", c_void_p), ("outward", c_void_p),
        ("other", c_void_p), ("life", c_void_p), ("taken", c_uint64), ("begun", c_uint64),
    ]  # fmt: skip


class Counter(ctypes.Structure):
    """A number to wait for; ``turn`` grows with every change. Change it through the functions."""

    _fields_ = [
        ("value", c_int64), ("turn", c_uint32), ("waiters", c_uint32), ("line", c_uint8 * 48),
    ]  # fmt: skip


class Slots(ctypes.Structure):
    """What stands in front of a row of slots; read it through the functions below."""

    _fields_ = [
        ("count", c_uint32), ("left", c_uint32), ("size", c_uint64), ("line0", c_uint8 * 48),
        ("filled", c_uint32), ("line1", c_uint8 * 60), ("emptied", c_uint32),
        ("line2", c_uint8 * 60), ("closed", c_uint32), ("line3", c_uint8 * 60),
        ("bell", Counter), ("bytes", c_uint32 * 64),
    ]  # fmt: skip


class Record(ctypes.Structure):
    """What stands in front of every record of a log."""

    _fields_ = [
        ("magic", c_uint32), ("head", c_uint32), ("body", c_uint64), ("at", c_uint64),
        ("n", c_uint64), ("sum", c_uint64),
    ]  # fmt: skip


class MissingKernels(ImportError):
    """Report that the C kernels have not been built for this Python."""


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise MissingKernels(
            f"C kernels cannot be loaded: {error} - allowed: a library built on this machine - "
            "do: python -m kernels.build"
        ) from None


_library = _load()


def function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of the library with its types; raise MissingKernels if it is too old."""
    try:
        found = getattr(_library, name)
    except AttributeError:
        raise MissingKernels(
            f"{LIBRARY} has no {name} - allowed: a library of this version - do: "
            "python -m kernels.build"
        ) from None
    found.restype, found.argtypes = result, arguments
    return found


def check(result: int) -> int:
    """Return a result of C, or raise the OSError that its negative value stands for."""
    if result == CLOSED:
        raise ConnectionResetError("the other side closed the connection")
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


_size, _address = c_size_t, c_void_p
_int, _none = c_int, None

# operations and payloads
apply = function("dlp_apply", _none, POINTER(Operation), *[_address] * 5, _size, _size)
copy_floats = function("dlp_copy", _none, _address, _address, _size)
sum_into = function("dlp_sum", _none, _address, POINTER(c_void_p), _size, _size, c_float)
average = function("dlp_average", _none, POINTER(c_void_p), _size, _size, c_float)
combine = function(
    "dlp_combine", _none, POINTER(c_void_p), _size, POINTER(c_void_p), _size, _size, c_float
)
norm = function("dlp_norm", c_double, _address, _size)
matrix = function("dlp_matrix", _none, *[_address] * 3, *[_size] * 3, c_float, c_float)
payload_bytes = function("dlp_payload_bytes", _size, _int, _size, _size)
check_payload = function("dlp_check_payload", _int, _int, _address, _size, _size)
pack = function("dlp_pack", _int, _int, _address, _address, _address, _size, _size)
unpack = function("dlp_unpack", _none, _int, _address, _address, _size, _size, _size)

# memory
reserve = function("dlp_reserve", c_ssize_t, _size)
map_file = function("dlp_map", c_ssize_t, c_ssize_t, _size, _int, _size, _int)
allocate = function("dlp_allocate", c_ssize_t, _size)
map_again = function("dlp_map_again", c_ssize_t, c_ssize_t, _size, c_ssize_t)
populate = function("dlp_populate", _int, c_ssize_t, _size)
punch = function("dlp_punch", _int, c_ssize_t, _size)
unmap = function("dlp_unmap", _int, c_ssize_t, _size)

# segments
patience = function("dlp_patience", _none, _int)
header_bytes = function("dlp_header_bytes", _size, _size)
header_init = function("dlp_header_init", _int, _address, _size)
header_check = function("dlp_header_check", _int, _address, _size)
lock = function("dlp_lock_told", _int, _address, _size)
try_lock = function("dlp_try_lock", _int, _address, _size)
unlock = function("dlp_unlock", _none, _address, _size)
abandon = function("dlp_abandon", _none, _address, _size)
owner = function("dlp_owner", c_uint32, _address, _size)
locked = function(
    "dlp_locked", _int, POINTER(Operation), _address, *[_size] * 2, *[_address] * 2, _size, _size,
    c_uint32,
)  # fmt: skip
gated = function(
    "dlp_gated", _int, POINTER(Operation), _address, POINTER(Gate), _address, _address, _size
)
step = function("dlp_step", c_uint64, _address)
cut = function("dlp_cut", _none, _address, c_uint32)
read_cut = function("dlp_read_cut", _int, _address, _size, _size, _address)
changed = function("dlp_changed", _size, _address, c_uint64, _address, _size, _address)

# counters and the gate
counter_get = function("dlp_counter_get", c_int64, _address)
counter_set = function("dlp_counter_set", _none, _address, c_int64)
counter_add = function("dlp_counter_add", c_int64, _address, c_int64)
counter_swap = function("dlp_counter_swap", c_int64, _address, c_int64, c_int64)
counter_wait = function("dlp_counter_wait", _int, _address, c_int64, _int)
counter_slice = function("dlp_counter_slice", _none, c_int64)
counter_wake = function("dlp_counter_wake", _none, _address)
enter = function("dlp_enter", c_int64, POINTER(Gate))
leave = function("dlp_leave", _none, _address)
left = function("dlp_left", _int, _address, c_int64, _int)

# conduits, and updates that come over them
take = function("dlp_take", c_ssize_t, _address, _address, _size)
send = function("dlp_send", _int, _address, _address, _size, _int)
receive = function("dlp_receive", _int, _address, _address, _size)
ready = function("dlp_ready", _int, _address, _int, _int, _int)
hang_up = function("dlp_hang_up", _none, _address)
gone = function("dlp_gone", _int, _address)
exchange = function(
    "dlp_exchange", _int, _address, _int, _address, _size, _address, _size, _int, _address
)
discard = function("dlp_discard", _int, _address, _size)
ring_floats = function("dlp_ring_floats", _size)
receive_apply = function("dlp_receive_apply", _int, _address, _address, _address)
answer_again = function("dlp_answer_again", _int, _address, _address, c_uint64)
slots_bytes = function("dlp_slots_bytes", _size, c_uint32, _size)
slots_init = function("dlp_slots_init", _none, _address, c_uint32, _size)
slots_full = function("dlp_slots_full", c_uint32, _address)
slot = function("dlp_slot", c_ssize_t, _address, c_uint32)
slot_filled = function("dlp_slot_filled", _none, _address, c_uint32)
slot_emptied = function("dlp_slot_emptied", _none, _address)
bell_wait = function("dlp_bell_wait", _int, _address, c_uint32, c_int64)
replay = function("dlp_replay", _int, _address, _address, c_uint64, _size, _address)

# the log
log_bytes = function("dlp_log_bytes", _size)
log_init = function("dlp_log_init", _int, _address)
log_alone = function("dlp_log_alone", _none, _address)
log_free = function("dlp_log_free", _none, _address)
log_file = function("dlp_log_file", _none, _address, _int, c_uint64)
log_mirror = function("dlp_log_mirror", _none, _address, _int)
log_position = function("dlp_log_position", c_uint64, _address)
log_degraded = function("dlp_log_degraded", _int, _address)
append = function("dlp_append", _int, *[_address] * 4)
record_sum = function("dlp_record_sum", c_uint64, *[_address] * 3)
record_check = function("dlp_record_check", _int, _address)

copy = ctypes.memmove


def operation(
    name: str, scalars: tuple[float, ...], format: str = "fp32", entries: int = 0
) -> Operation:
    """Return the record of an operation: scalars as ``kernels.reference`` names them."""
    k = (c_float * 8)(*scalars)
    return Operation(OPERATIONS[name], FORMATS[format], entries, k)


def run(name: str, y: int, x: int | None, n: int, *scalars: float) -> None:
    """Apply an operation to n elements of this process's own memory, without locks."""
    apply(operation(name, scalars), y, None, None, x, None, 0, n)


def pointers(addresses: list[int]) -> ctypes.Array[c_void_p]:
    """Return a C array of addresses, for ``sum_into`` and ``average``."""
    return (c_void_p * len(addresses))(*addresses)
