"""Build the C kernels with the plain C compiler: ``python -m kernels.build``."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "_native.so"
# -ffp-contract=off keeps results bit-equal to the reference on every processor.
FLAGS = [
    *("-O3", "-fPIC", "-shared", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno"),
    *("-pthread", "-Wall", "-Wextra"),
]


class BuildFailed(RuntimeError):
    """Report a missing or failing C compiler, in one line with the remedy."""


def sources() -> list[Path]:
    """Return the C files of the kernels."""
    return sorted((HERE / "native").rglob("*.c"))


def command(target: Path) -> list[str]:
    """Return the compiler's command line; the variable CC names another compiler than cc."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    return [*compiler, *FLAGS, "-o", str(target), *map(str, sources()), "-lm"]


def build(target: Path = LIBRARY) -> Path:
    """Compile all sources into one library and put it in place in one step.

    Raises:
        BuildFailed: the compiler is missing or refuses the sources.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    line = command(fresh)
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildFailed(_refused(line[0], done.stderr))
        os.replace(fresh, target)
    except FileNotFoundError:
        raise BuildFailed(
            f"C compiler {line[0]} is missing - the kernels need gcc or clang - "
            "do: apt-get install -y gcc libc6-dev"
        ) from None
    finally:
        fresh.unlink(missing_ok=True)
    return target


def _refused(compiler: str, output: str) -> str:
    errors = [line for line in output.splitlines() if "error" in line.lower()]
    first = (errors or output.splitlines() or ["no message"])[0].strip()
    return (
        f"{compiler} could not build the kernels: {first} - they need gcc 9 or newer with the "
        "C library's headers - do: apt-get install -y gcc libc6-dev"
    )


def main() -> int:
    """Build in place; print the library's path."""
    try:
        print(build())
    except BuildFailed as error:
        print(f"dlp: error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
