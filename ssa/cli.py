# SPDX-License-Identifier: MIT
"""
The C{ssa} command.

Each subcommand imports what it needs when it is called: C{ssa run} must start fast, and must not have Twisted loaded before
it forks.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import pwd
import sys
from collections.abc import Sequence

from ssa.policy.profile import DEFAULT_FILE, HIGHEST_USER
from ssa.statusformat import DEFAULT_DAEMON
from ssa.version import __version__

_RUN_OPTIONS_WITH_VALUE = ("--config", "--daemon", "--way")


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
        "executed, 125 if interception is not possible here (see `ssa doctor`) or FILE has an error.",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        default="",
        help="use a daemon of one's own, with this configuration; PROGRAM is not started if `ssa check FILE` would tell an "
        "error, such as a file that you may not read",
    )
    daemon = run.add_mutually_exclusive_group()
    daemon.add_argument("--daemon", metavar="SOCKET", default="", help="use the daemon at this socket, or fail")
    daemon.add_argument("--embedded", action="store_true", help="use a daemon of one's own even if the system has one")
    run.add_argument(
        "--way",
        choices=("auto", "root", "user-namespace", "loopback"),
        default="auto",
        help="how to intercept (default: the first of these that works)",
    )
    run.set_defaults(fail=run.error)

    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Check a configuration file with its drop-ins, and that the certificates, keys, trust stores and lists of "
        "logs that it names exist and fit together; every error is a line FILE:LINE: [SECTION] KEY: … on standard error.",
    )
    check.add_argument("file", metavar="FILE", nargs="?", default=DEFAULT_FILE)

    explain = commands.add_parser(
        "explain",
        help="show the policy in force",
        description="Show the policy for a program that connects, or listens if no destination is given: each value with the "
        "file, the line and the section that it comes from.",
    )
    explain.add_argument("--application", metavar="PATH", default="", help="the executable (default: none in particular)")
    explain.add_argument("--user", metavar="NAME", default="", help="the user, name or number (default: who calls)")
    explain.add_argument(
        "--destination",
        metavar="HOST:PORT",
        default="",
        help="where it connects to: a name or an address; [ADDRESS]:PORT for IPv6",
    )
    explain.add_argument("--address", default="", help="the address that a name stands for, for rules on addresses")
    explain.add_argument("file", metavar="FILE", nargs="?", default="", help=f"(default: {DEFAULT_FILE}, if it exists)")

    status = commands.add_parser(
        "status",
        help="show what the machine's daemon serves",
        description="Show what the machine's daemon serves now. Root and the daemon's own user see everything, others what is "
        "theirs.",
        epilog="The exit status is 0, or 1 with a line on standard error that says why there is nothing to show.",
    )
    status.add_argument("--json", action="store_true", help="print the daemon's document as it is; ssa(1) has its fields")
    status.add_argument("--daemon", metavar="SOCKET", default=DEFAULT_DAEMON, help=f"(default: {DEFAULT_DAEMON})")

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
            hint = _hint(arguments.config)
            if hint:
                print(f"ssa run: {hint}", file=sys.stderr)
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
    from ssa.privileges import withoutOverride

    # Root in a shell could read what the daemon cannot.
    with withoutOverride():
        return _checkFile(arguments.file)


def _checkFile(path: str) -> int:
    """Say what is wrong with a configuration; 0 if nothing is."""
    from ssa.configuration import loadConfiguration
    from ssa.policy.parser import ConfigurationError

    try:
        files = loadConfiguration(path).default.files
    except ConfigurationError as failure:
        print(*failure.errors, sep="\n", file=sys.stderr)
        return 1
    for warning in files.warnings if files is not None else ():
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _hint(path: str) -> str:
    """
    Say what to do about a configuration that cannot be used.

    @return: "" unless all that is wrong is that this user may not read some of the files that it names.
    """
    from ssa.configuration import loadConfiguration
    from ssa.policy.parser import ConfigurationError

    try:
        loadConfiguration(path, mayLack=True)
    except ConfigurationError:
        return ""
    if os.path.realpath(path) == os.path.realpath(DEFAULT_FILE):
        return (
            f"leave --config away: {DEFAULT_FILE} holds without it too, and a file that you may not read is then missing "
            "only for the programs that need it"
        )
    return "with --config FILE, you must be able to read every file that FILE names"


def _explain(arguments: argparse.Namespace) -> int:
    from ssa.configuration import validationNames
    from ssa.policy.explain import explain
    from ssa.policy.parser import ConfigurationError, loadPolicy
    from ssa.policy.profile import Caller

    try:
        uid = _userID(arguments.user)
        host, port = _destination(arguments.destination)
        address = _address(arguments.address)
    except ValueError as error:
        print(f"ssa explain: {error}", file=sys.stderr)
        return 2
    if arguments.application and not arguments.application.startswith("/"):
        print(f"ssa explain: --application: {arguments.application!r} is no absolute path", file=sys.stderr)
        return 2
    try:
        policy = loadPolicy(arguments.file or None, validators=validationNames)
    except ConfigurationError as failure:
        print(*failure.errors, sep="\n", file=sys.stderr)
        return 1
    executable = os.path.realpath(arguments.application) if arguments.application else ""
    print(*explain(policy, Caller(uid, executable=executable), host, port, address), sep="\n")
    return 0


def _userID(name: str) -> int:
    """@raise ValueError: there is no such user."""
    if not name:
        return os.geteuid()
    if name.isascii() and name.isdigit():
        if len(name) > 10 or int(name) > HIGHEST_USER:
            raise ValueError(f"--user: {name[:20]!r} is no number of a user; the highest is {HIGHEST_USER}")
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ValueError(f"--user: there is no user {name!r}") from None


def _destination(text: str) -> tuple[str | None, int]:
    """
    Read a host and a port; nothing is a listener's.

    @raise ValueError: it is something else.
    """
    if not text:
        return None, 0
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ValueError(f"--destination: {text!r} is not HOST:PORT, with a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port)
        except ValueError as error:
            raise ValueError(f"--destination: {text!r} is not [ADDRESS]:PORT: {error}") from None
    if not host or ":" in host:
        raise ValueError(f"--destination: {text!r} is not HOST:PORT; an IPv6 address is written as [ADDRESS]:PORT")
    return host, int(port)


def _address(text: str) -> str:
    """@raise ValueError: it is no IP address."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError as error:
        raise ValueError(f"--address: {error}") from None


def _doctor(_arguments: argparse.Namespace) -> int:
    from ssa.doctor import report

    return report(sys.stdout)


def _status(arguments: argparse.Namespace) -> int:
    from ssa.statuscommand import main

    return main(arguments.daemon, arguments.json)


_COMMANDS = {"check": _check, "doctor": _doctor, "explain": _explain, "status": _status}


def main(argv: Sequence[str] | None = None) -> int:
    """
    The entry point.

    @param argv: the arguments without the command's name; default: the process's.
    @return: the exit status; usage errors leave through C{SystemExit(2)}.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if words[:1] != ["run"]:
        try:
            try:
                arguments = parser.parse_args(words)
                return _COMMANDS[arguments.command](arguments)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # Who reads has seen enough.  The interpreter must not try again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
            return 1
    options, program = _splitProgram(words[1:])
    arguments = parser.parse_args(["run", *options])
    if not program:
        arguments.fail("PROGRAM is missing")
    if arguments.config and arguments.daemon:
        arguments.fail("--config is for a daemon of one's own; the one at --daemon has its own configuration")
    arguments.argv = program
    return _run(arguments)
