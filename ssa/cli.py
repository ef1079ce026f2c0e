# SPDX-License-Identifier: MIT
"""
The C{ssa} command.

Each subcommand imports what it needs when it is called: C{ssa run} must start fast, and must not have Twisted loaded before
it forks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ssa.version import __version__

_RUN_OPTIONS_WITH_VALUE = ("--config", "--daemon", "--way")

DEFAULT_CONFIGURATION = "/etc/ssa.conf"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ssa", description="TLS as a service of the operating system.")
    parser.add_argument("--version", action="version", version=f"ssa {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="run a program with IPPROTO_TLS",
        usage="ssa run [--config FILE] [--daemon SOCKET | --embedded] [--way WAY] [--] PROGRAM [ARG ...]",
        allow_abbrev=False,
        description="Run PROGRAM with IPPROTO_TLS sockets, without a kernel module and without root.",
        epilog="The exit status is the program's; 128+n if signal n ended it, 127 if it was not found, 126 if it cannot be "
        "executed, 125 if interception is not possible here (see `ssa doctor`).",
    )
    run.add_argument("--config", metavar="FILE", default="", help="use a daemon of one's own, with this configuration")
    daemon = run.add_mutually_exclusive_group()
    daemon.add_argument("--daemon", metavar="SOCKET", default="", help="use the daemon at this socket, or fail")
    daemon.add_argument("--embedded", action="store_true", help="use a daemon of one's own even if the system has one")
    run.add_argument(
        "--way",
        choices=("auto", "root", "user-namespace", "loopback"),
        default="auto",
        help="how to intercept (default: the first of these that works)",
    )

    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Check a configuration file; every error is a line FILE:LINE: [SECTION] KEY: … on standard error.",
    )
    check.add_argument("file", metavar="FILE", nargs="?", default=DEFAULT_CONFIGURATION)

    commands.add_parser(
        "doctor",
        help="say what this machine can do",
        description="Say what this machine can do for `ssa run`, and what to do about what it cannot.",
        epilog="The exit status is 0 if `ssa run` can work here, else 1.",
    )
    return parser


def _splitProgram(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """
    Part C{ssa run}'s own options from the program and its arguments, which may look like anything, C{--} included.
    """
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return list(words[:position]), list(words[position + 1 :])
        if not word.startswith("-"):
            break
        position += 2 if word in _RUN_OPTIONS_WITH_VALUE else 1
    return list(words[:position]), list(words[position:])


def _run(arguments: argparse.Namespace) -> int:
    from ssa.intercept.launch import EXIT_OWN_FAILURE, Options, run

    if arguments.config:
        # The supervisor has another working directory; and errors are for whoever is here to read them.
        arguments.config = os.path.abspath(arguments.config)
        arguments.embedded = True
        if _checkFile(arguments.config):
            return EXIT_OWN_FAILURE
    return run(
        Options(
            argv=tuple(arguments.argv),
            config=arguments.config,
            daemon=arguments.daemon,
            embedded=arguments.embedded,
            way=arguments.way,
        )
    )


def _check(arguments: argparse.Namespace) -> int:
    return _checkFile(arguments.file)


def _checkFile(path: str) -> int:
    """Say what is wrong with a configuration; 0 if nothing is."""
    from ssa.policy.parser import ConfigurationError, loadPolicy

    try:
        loadPolicy(path)
    except ConfigurationError as failure:
        print(*failure.errors, sep="\n", file=sys.stderr)
        return 1
    return 0


def _doctor(_arguments: argparse.Namespace) -> int:
    from ssa.doctor import report

    return report(sys.stdout)


_COMMANDS = {"check": _check, "doctor": _doctor}


def main(argv: Sequence[str] | None = None) -> int:
    """
    The entry point.

    @param argv: the arguments without the command's name; default: the process's.
    @return: the exit status; usage errors leave through C{SystemExit(2)}.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if words[:1] != ["run"]:
        arguments = parser.parse_args(words)
        return _COMMANDS[arguments.command](arguments)
    options, program = _splitProgram(words[1:])
    arguments = parser.parse_args(["run", *options])
    if not program:
        parser.error("run: PROGRAM is missing")
    if arguments.config and arguments.daemon:
        parser.error("run: --config is for a daemon of one's own; the one at --daemon has its own configuration")
    arguments.argv = program
    return _run(arguments)
