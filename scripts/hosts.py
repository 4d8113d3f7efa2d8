"""Several hosts on one machine: network namespaces with links of a chosen rate, delay and loss.

python scripts/hosts.py run 4 -- dlp train task=zoo/digits rule=hybrid workers=8 boxes=2
python scripts/hosts.py up 4 --rate 200 --name lab      # lab1 .. lab4, until: down --name lab
python scripts/hosts.py enter lab2 'ping -c 1 lab1'     # as ssh would; also an agent for mpirun
python scripts/hosts.py link lab2 down                  # and up again
python scripts/hosts.py die lab2                        # it vanishes without a word
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hostparts import Missing
from hostparts.spaces import Hosts

AGENT = f"{sys.executable} {Path(__file__).resolve()} enter"
LOCAL_OPTIONS = {"-l": 1, "-p": 1, "-o": 1, "-x": 0, "-n": 0, "-q": 0, "-T": 0}
"""Options of ssh that a caller may put first, and how many words each takes along."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    head, _, examples = (__doc__ or "").partition("\n\n")
    p = argparse.ArgumentParser(
        description=head, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = p.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("up", "make hosts"),
        ("run", "make hosts, run the command after --, take them away"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("count", type=int)
        one.add_argument("--name", default="host", help="of all hosts (default: %(default)s)")
        one.add_argument("--subnet", default="10.77.0", help="default: %(default)s")
        one.add_argument("--rate", type=float, help="Mbit/s of every link, each way")
        one.add_argument("--delay", type=float, default=0.0, help="milliseconds, one way")
        one.add_argument("--loss", type=float, default=0.0, help="share of packets that are lost")
    one = verbs.add_parser("down", help="take the hosts away")
    one.add_argument("--name", default="host")
    one = verbs.add_parser("enter", help="run a command on a host")
    one.add_argument("words", nargs=argparse.REMAINDER)
    for verb, text in (("link", "cut a host off, or let it back in"), ("die", "let a host vanish")):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("host")
        if verb == "link":
            one.add_argument("state", choices=["up", "down"])
    end = list(argv).index("--") if "--" in argv and "run" in argv[:1] else len(argv)
    options = p.parse_args(argv[:end])
    options.command = list(argv[end + 1 :])
    return options


def make(options: argparse.Namespace) -> Hosts:
    """Make the hosts that were asked for."""
    if not 1 <= options.count <= 250:
        raise Missing(f"{options.count} hosts - allowed: 1 to 250 - do: hosts.py up 4")
    if options.rate and (options.delay or options.loss):
        raise Missing("--rate with --delay or --loss - allowed: one of both - do: leave one out")
    if not 0 <= options.loss < 1 or options.delay < 0 or (options.rate or 1) <= 0:
        raise Missing("--loss, --delay or --rate - allowed: 0 up to 1, 0 or more, above 0")
    hosts = Hosts(options.count, options.name, options.subnet, options.delay / 1000, options.loss)
    for number in range(options.count if options.rate else 0):
        hosts.shape(number, options.rate)
    return hosts


def run(options: argparse.Namespace) -> int:
    """Run a command beside hosts; ``dlp train`` is told to use them all."""
    words: list[str] = options.command
    if not words:
        raise Missing("run without a command - do: hosts.py run 4 -- dlp train task=zoo/digits ...")
    hosts = make(options)
    try:
        if words[:2] == ["dlp", "train"] and not any("launcher=" in word for word in words):
            words += ["launcher=ssh", f"cluster.hosts=[{','.join(hosts.names())}]",
                      f'cluster.agent="{AGENT}"']  # fmt: skip
        env = {**os.environ, "HOSTS": ",".join(hosts.names()), "AGENT": AGENT}
        with subprocess.Popen(words, env=env) as process:
            signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    continue  # the terminal has told the command, which ends as it should
    finally:
        hosts.close()


def enter(words: Sequence[str]) -> int:
    """Become a command on a host: ``HOST COMMAND...``, options of ssh in front are overlooked."""
    words = list(words)
    while words and words[0].startswith("-"):
        del words[: 1 + LOCAL_OPTIONS.get(words[0], 0)]
    if len(words) < 2:
        raise Missing("enter needs a host and a command - do: hosts.py enter host1 hostname")
    host, *command = words
    inside = f"hostname {host} && {' '.join(command)}"
    os.execvp("ip", ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", inside])


def one(host: str) -> tuple[Hosts, int]:
    """Return the hosts that one belongs to, and its number."""
    name = host.rstrip("0123456789")
    hosts = Hosts.found(name)
    if host not in hosts.names():
        raise Missing(f"{host} is no host - allowed: {', '.join(hosts.names())}")
    return hosts, hosts.names().index(host)


def main(argv: Sequence[str]) -> int:
    """Do what was asked; say in one line why it cannot be."""
    options = parse(argv)
    try:
        if options.verb == "run":
            return run(options)
        if options.verb == "enter":
            return enter(options.words)
        if options.verb == "up":
            print(",".join(make(options).names()))
        elif options.verb == "down":
            Hosts.found(options.name).close()
        else:
            hosts, number = one(options.host)
            if options.verb == "link":
                hosts.link(number, options.state == "up")
            else:
                hosts.die(number)
    except Missing as error:
        print(f"hosts: error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
