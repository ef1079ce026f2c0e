# SPDX-License-Identifier: MIT
"""
The whole configuration: ssa.conf, the files that it names, and the seed of the random number generator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from OpenSSL import rand

from ssa.policy.parser import ConfigurationError, Validators, loadPolicy
from ssa.policy.profile import Policy
from ssa.tls.policyfiles import loadFiles
from ssa.validation import validatorNames

__all__ = ["loadConfiguration", "validationNames"]


def validationNames() -> Iterable[str]:
    """Find the names of the validation plug-ins, when a configuration names some."""
    return validatorNames()


def loadConfiguration(
    path: str | None = None,
    required: bool = True,
    validators: Validators = validationNames,
    mayLack: bool = False,
) -> Policy:
    """
    Read the configuration, all or nothing.

    @param path: as in L{loadPolicy}.
    @param required: as in L{loadPolicy}.
    @param validators: as in L{loadPolicy}.
    @param mayLack: as in L{loadFiles}.
    @return: the policy with its files.
    @raise ConfigurationError: with all errors.
    """
    policy = loadFiles(loadPolicy(path, required, validators), mayLack)
    _addSeed(policy, mayLack)
    return policy


def _addSeed(policy: Policy, mayLack: bool) -> None:
    """
    Mix what RandomSeed names into OpenSSL's generator.

    It is never the only seed: nothing of it is counted as entropy (RAND_add(3), C{randomness} 0), so that OpenSSL goes on
    to seed itself from the kernel.

    @raise ConfigurationError: the file does not give it.
    """
    path, count = policy.randomSeed
    if not count:
        return
    file, line = policy.origins["RandomSeed"]
    place = f"{file}:{line}: [default] RandomSeed: {path}"
    try:
        data = _readSeed(path, count)
    except PermissionError as error:
        if mayLack:
            return
        raise ConfigurationError([f"{place}: {error.strerror}"]) from error
    except OSError as error:
        raise ConfigurationError([f"{place}: {error.strerror}"]) from error
    if len(data) < count:
        raise ConfigurationError([f"{place}: it gives {len(data)} bytes now, {count} are asked for"])
    rand.add(data, 0)


def _readSeed(path: str, count: int) -> bytes:
    """Read so many bytes, or those that there are now: a device never makes the daemon wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        data = bytearray()
        while len(data) < count:
            try:
                part = os.read(descriptor, count - len(data))
            except BlockingIOError:
                break
            if not part:
                break
            data += part
        return bytes(data)
    finally:
        os.close(descriptor)
