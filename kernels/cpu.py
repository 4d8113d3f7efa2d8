"""The C kernels, loaded with ctypes: every call releases the GIL and takes bare addresses.

Addresses are integers, lengths count fp32 elements unless a name says ``bytes``.
``kernels/reference.py`` says what each operation means.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_float, c_int, c_int64, c_size_t, c_ssize_t, c_void_p
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).with_name("_native.so")
CLOSED = -1000000
NONE = -1
STRIPE = 1 << 18
CHUNK = 1 << 16
PAGE = 4096

OPERATIONS = {
    name: code
    for code, name in enumerate(
        ("scal", "axpy", "axpby", "elastic", "difference", "merge", "fetch")
    )
}


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


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function


def check(result: int) -> int:
    """Return a result of C, or raise the OSError that its negative value stands for."""
    if result == CLOSED:
        raise ConnectionResetError("the other side closed the connection")
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


_op = (c_void_p, c_void_p, c_void_p, c_size_t, c_float, c_float)
apply = _function("dlp_apply", None, c_int, *_op)
locked = _function(
    "dlp_locked", c_int,
    c_int, c_void_p, c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_float, c_float, c_size_t,
)  # fmt: skip
sum_into = _function("dlp_sum", None, c_void_p, POINTER(c_void_p), c_size_t, c_size_t, c_float)
average = _function("dlp_average", None, POINTER(c_void_p), c_size_t, c_size_t, c_float)

reserve = _function("dlp_reserve", c_ssize_t, c_size_t)
map_file = _function("dlp_map", c_ssize_t, c_ssize_t, c_size_t, c_int, c_size_t)
allocate = _function("dlp_allocate", c_ssize_t, c_size_t)
unmap = _function("dlp_unmap", c_int, c_ssize_t, c_size_t)

header_bytes = _function("dlp_header_bytes", c_size_t, c_size_t)
header_init = _function("dlp_header_init", c_int, c_void_p, c_size_t)
header_check = _function("dlp_header_check", c_int, c_void_p, c_size_t)
lock = _function("dlp_lock", c_int, c_void_p, c_size_t)
try_lock = _function("dlp_try_lock", c_int, c_void_p, c_size_t)
unlock = _function("dlp_unlock", None, c_void_p, c_size_t)

counter_get = _function("dlp_counter_get", c_int64, c_void_p)
counter_set = _function("dlp_counter_set", None, c_void_p, c_int64)
counter_add = _function("dlp_counter_add", c_int64, c_void_p, c_int64)
counter_swap = _function("dlp_counter_swap", c_int64, c_void_p, c_int64, c_int64)
counter_wait = _function("dlp_counter_wait", c_int, c_void_p, c_int64, c_int)
counter_wake = _function("dlp_counter_wake", None, c_void_p)

exchange = _function(
    "dlp_exchange", c_int,
    c_int, c_int, c_void_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p,
)  # fmt: skip
receive = _function("dlp_receive", c_int, c_int, c_void_p, c_size_t)
transmit = _function("dlp_transmit", c_int, c_int, c_void_p, c_size_t)
discard = _function("dlp_discard", c_int, c_int, c_size_t)
receive_apply = _function(
    "dlp_receive_apply", c_int,
    c_int, c_int, c_void_p, c_void_p, c_size_t, c_size_t, c_float, c_float, c_void_p,
)  # fmt: skip

copy = ctypes.memmove


def pointers(addresses: list[int]) -> ctypes.Array[c_void_p]:
    """Return a C array of addresses, for ``sum_into`` and ``average``."""
    return (c_void_p * len(addresses))(*addresses)
