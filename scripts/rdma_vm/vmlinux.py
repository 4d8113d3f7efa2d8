"""Take the ELF kernel out of a bzImage: booted directly, nothing is unpacked under emulation."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
import sys
from pathlib import Path


def unpack(image: bytes) -> bytes:
    """Return the vmlinux inside (payload_offset and payload_length of the x86 boot protocol)."""
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (sectors + 1) * 512 + offset
    payload = image[begin : begin + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        found = subprocess.run(["zstd", "-dc"], input=payload[:-4], stdout=-1, check=True)
        return found.stdout
    raise SystemExit(f"kernel packed in a way that is not known: {payload[:6].hex()}")


if __name__ == "__main__":
    kernel = unpack(Path(sys.argv[1]).read_bytes())
    if not kernel.startswith(b"\x7fELF"):
        raise SystemExit("what was in the bzImage is no ELF file")
    Path(sys.argv[2]).write_bytes(kernel)
