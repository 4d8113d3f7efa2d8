"""Parts of ``scripts/hosts.py``: pretended hosts on one machine, for tests and benchmarks."""


class Missing(Exception):
    """Say in one line why something cannot be had, or measured, here."""
