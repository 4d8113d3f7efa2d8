"""Random numbers as a pure function of (seed, purpose, number).

No generator carries state from one minibatch to the next, so claiming, resuming and
reproducing a minibatch need nothing but its number.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed that depends on the job's seed and on every part of the path."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
