"""The command ``dlp``: its verbs, its help, and how every process of the platform ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from dlplatform.errors import PlatformError, UsageError, closest

# verb: (module, function); modules come in when their verb is called, so that help is instant.
VERBS = {
    "train": ("launch.submit", "train"),
    "submit": ("launch.submit", "enqueue"),
    "sweep": ("launch.sweep.jobs", "main"),
    "join": ("launch.join", "main"),
    "eval": ("launch.saved", "evaluate"),
    "predict": ("launch.saved", "predict"),
    "export": ("launch.saved", "export"),
    "box": ("launch.boxes", "main"),
    "bench": ("launch.bench", "main"),
    "doctor": ("launch.doctor", "main"),
    "tasks": ("launch.help", "tasks_table"),
}
HELP = "launch.help"
OWN_HELP = ("box", "bench")
INTERRUPTED = 130
# Set by launchers, which gather the error lines of many workers and show one of them: "code" or
# "line". With "line" the code is in the line only, and the process exits with 0, since mpirun
# abandons all other ranks as soon as one exits with another code.
REPORT = "DLP_REPORT"


def guard(run: Callable[[], object]) -> int:
    """Run something and return the exit code; an error of the platform is one line on stderr.

    Any other exception is a bug: its traceback is shown and the code is 1.
    """
    try:
        done = run()
        return done if type(done) is int else 0
    except PlatformError as error:
        return _report(str(error), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # dlp tasks | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        traceback.print_exc()
        if os.environ.get(REPORT):
            return _report(f"bug: {type(error).__name__}: {error}", 1)
        return 1


def _report(text: str, code: int) -> int:
    how = os.environ.get(REPORT)
    if not text:  # another process says it
        return 0 if how == "line" else code
    prefix = f"dlp: rank {_rank()} exit {code}: " if how else "dlp: error: "
    print(prefix + " ".join(text.split()), file=sys.stderr, flush=True)
    return 0 if how == "line" else code


def _rank() -> int:
    from dlplatform.world import World

    try:
        return World.detect().rank
    except PlatformError:  # two launchers disagree: that is the error being reported
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return guard(lambda: run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: Sequence[str]) -> object:
    """Run one verb with its arguments.

    Raises:
        UsageError: there is no such verb.
    """
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("-h", "--help", "help"):
        import_module(HELP).overview()
        return 0
    if verb in ("-V", "--version", "version"):
        from importlib.metadata import version

        print("dlplatform", version("dlplatform"))
        return 0
    if verb not in VERBS:
        raise UsageError(
            f"dlp {verb} is not a command{closest(verb, VERBS)}. Allowed: {', '.join(VERBS)}"
        )
    if verb not in OWN_HELP and {"-h", "--help"} & set(rest):
        import_module(HELP).verb_help(verb, rest)
        return 0
    module, function = VERBS[verb]
    return getattr(import_module(module), function)(rest)


if __name__ == "__main__":
    sys.exit(main())
