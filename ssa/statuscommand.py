# SPDX-License-Identifier: MIT
"""
C{ssa status}: ask the machine's daemon what it serves, and print it.

Whoever answers is not trusted: the answer is bounded in size and time, and has to be what a daemon of this project sends.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import struct
import sys
import time
from typing import Any, TextIO

from ssa.errors import oneLine
from ssa.statusformat import FORMAT, SUFFIX
from ssa.statustext import render

__all__ = ["LARGEST", "SECONDS", "NoStatus", "fetch", "status"]

SECONDS = 30.0
"""How long all of it may take."""

LARGEST = 64 << 20
"""The most bytes of an answer; a daemon sends about half of it at most."""

_TIMEVAL = struct.Struct("@ll")
_BAD = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class NoStatus(Exception):
    """There is nothing to show; the text says why, and what to do about it."""


def status(path: str, asJSON: bool, output: TextIO, errors: TextIO, seconds: float = SECONDS) -> int:
    """
    Print the status.

    @param path: the daemon's socket.
    @param asJSON: print the document as it came, not a text.
    @param seconds: how long it may take.
    @return: the exit status: 0, or 1 with a line on C{errors}.
    """
    try:
        document, text = fetch(path, seconds)
        if not asJSON:
            text = "".join(f"{line}\n" for line in _rendered(document))
    except NoStatus as reason:
        print(f"ssa status: {oneLine(str(reason))}", file=errors)
        return 1
    try:
        output.write(text)
        output.flush()
    except UnicodeEncodeError as error:  # the locale has no such character
        output.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        output.flush()
    except BrokenPipeError:
        # Who reads has seen enough.  The interpreter must not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        return 1
    return 0


def _rendered(document: dict[str, Any]) -> list[str]:
    """@raise NoStatus: it is not of the form that this version knows."""
    if document["ssa_status"] != FORMAT:
        raise NoStatus(
            f"the daemon's status has format {document['ssa_status']}, this command knows {FORMAT}: use the ssa command of the"
            " daemon's version, or --json"
        )
    try:
        return render(document, _userName)
    except _BAD as error:
        raise NoStatus(f"what came is not the status of a daemon of this version ({type(error).__name__}: {error})") from error


def _userName(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def fetch(path: str, seconds: float = SECONDS) -> tuple[dict[str, Any], str]:
    """
    Ask a daemon; again, where it says so and there is time.

    @param path: the daemon's socket.
    @return: the document, and the text that it was made of.
    @raise NoStatus: there is none.
    """
    deadline = time.monotonic() + seconds
    while True:
        text = _ask(path, deadline)
        document = _parse(path, text)
        if "error" not in document:
            return document, text
        wait, left = document.get("retry_seconds"), deadline - time.monotonic()
        if not isinstance(wait, (int, float)) or not 0 < wait < left:
            raise NoStatus(f"the daemon at {path} does not tell now: {document['error']}")
        time.sleep(wait)


def _parse(path: str, text: str) -> dict[str, Any]:
    if not text:
        raise NoStatus(f"the daemon at {path} has closed the connection and said nothing; its log may say why")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoStatus(f"the answer at {path}{SUFFIX} is cut off, or not from a daemon of SSA: it is no JSON") from error
    if not isinstance(document, dict) or type(document.get("ssa_status")) is not int:
        raise NoStatus(f"the answer at {path}{SUFFIX} is not from a daemon of SSA: it has no number ssa_status")
    return document


def _ask(path: str, deadline: float) -> str:
    """Connect, and read to the end."""
    data = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            # connect(2) waits for room in the queue as long as a send may, and in no other way: unix(7).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(deadline))
            sock.connect(path + SUFFIX)
        except BlockingIOError as error:
            raise NoStatus(f"the daemon at {path} does not answer: too many wait for it") from error
        except (OSError, ValueError) as error:
            raise NoStatus(_whyNot(path, error)) from error
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                sock.settimeout(left)
                part = sock.recv(1 << 18)
                if not part:
                    break
                data += part
                if len(data) > LARGEST:
                    raise NoStatus(f"the answer at {path}{SUFFIX} is too big, more than {LARGEST} bytes")
        except TimeoutError as error:
            raise NoStatus(f"the daemon at {path} has not answered in time") from error
        except OSError as error:
            raise NoStatus(f"the connection to the daemon at {path} was lost: {error.strerror}") from error
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise NoStatus(f"the answer at {path}{SUFFIX} is not from a daemon of SSA: it is no ASCII") from error


def _timeval(deadline: float) -> bytes:
    """The time that is left; 0 would be forever."""
    left = max(0.001, deadline - time.monotonic())
    return _TIMEVAL.pack(int(left), int(left % 1 * 1_000_000) or 1)


def _whyNot(path: str, error: Exception) -> str:
    """Why there is no connection, and what to do about it."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        if os.path.exists(path) and number == errno.ENOENT:
            return f"there is {path} and no {path}{SUFFIX}: its daemon has been killed, or is of an older version; restart it"
        return (
            f"no daemon answers at {path}{SUFFIX}: start one (`systemctl start ssa`), or name its socket with --daemon."
            " The daemon that `ssa run` starts inside itself tells no status"
        )
    if number in (errno.EACCES, errno.EPERM):
        return f"{path}{SUFFIX}: {os.strerror(number)}; the daemon lets everybody connect: look at the mode of the directory"
    return f"what is at {path}{SUFFIX} is no daemon of SSA: {getattr(error, 'strerror', None) or error}"


def main(path: str, asJSON: bool) -> int:
    """
    Print the status to where this process prints.

    @return: the exit status.
    """
    return status(path, asJSON, sys.stdout, sys.stderr)
