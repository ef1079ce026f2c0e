# SPDX-License-Identifier: MIT
"""
Imports go one way, along the flow of data: L{LAYERS} is the architecture, this test makes it true.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ssa

ROOT = Path(ssa.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    # What the user starts.
    ("ssa.__main__", "ssa.cli", "ssa.demo", "ssa.doctor", "ssa.statuscommand", "ssa.tap", "twisted.plugins.ssa_plugin"),
    # The interceptor's supervisor, which starts an embedded daemon where the system has none.
    ("ssa.intercept.*",),
    # The daemon as a service, put together from its parts.
    ("ssa.service", "ssa.embedded", "ssa.engine", "ssa.status"),
    # Transports between interceptor and daemon.
    ("ssa.protocol.*",),
    # The daemon's flow.
    ("ssa.dispatcher",),
    ("ssa.sockets",),
    ("ssa.*",),
    # TLS, given a policy and options.
    ("ssa.tls.*",),
    # What a program may say about its socket.
    ("ssa.options", "ssa.optiontable", "ssa.optionvalues", "ssa.narrowing"),
    # What its values mean: certificates, keys, names.
    ("ssa.tls.certificates", "ssa.tls.identity", "ssa.tls.trust"),
    # Policy: from ssa.conf to a profile.
    ("ssa.policy.*",),
    # Names of ciphers and lists of logs, which a policy checks.
    ("ssa.tls.ciphers", "ssa.tls.loglist"),
    # The interface of validation plug-ins, whose names a policy checks.
    ("ssa.validation",),
    # Words that everybody uses.
    ("ssa.protocol.messages", "ssa.protocol.wire"),
    ("ssa.interfaces",),
    ("ssa.api",),
    ("ssa.errors", "ssa.regularfiles", "ssa.tcpstate", "ssa.version"),
    ("ssa.alerts",),
    # A library of its own: a kernel in memory, generic netlink, requests, the socket, messages.
    ("ssa.netlink.testing",),
    ("ssa.netlink.generic",),
    ("ssa.netlink.protocol",),
    ("ssa.netlink.port",),
    ("ssa.netlink.*",),
)
"""
From the top to the bottom; a module may import from its own layer and from those below.  An exact name goes before a
pattern, a longer pattern before a shorter one.
"""

NO_REACTOR = (
    "ssa.netlink.codec", "ssa.netlink.errors", "ssa.protocol.messages", "ssa.policy.*", "ssa.errors", "ssa.api",
    "ssa.interfaces",
)  # fmt: skip
"""Modules that work without any event loop: nothing of C{twisted.internet} but names of interfaces and Deferred."""

REACTOR_USERS = (
    "ssa.tap", "ssa.service", "ssa.embedded", "ssa.intercept.session", "ssa.demo", "twisted.plugins.ssa_plugin",
)  # fmt: skip
"""The entries, which alone may import the global reactor; all else is given one."""

PURE_TWISTED = ("twisted.internet.interfaces", "twisted.internet.defer", "twisted.internet.error")


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the project but the tests, by name."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["ssa", *path.relative_to(ROOT).with_suffix("").parts]
        if "test" not in parts[1:2]:
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(name: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """
    The modules that a module imports at any place in its code, except for type checking only.

    @param name: the module.
    @return: names, perhaps with a name inside of the module, and lines.
    """
    skipped = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in test.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level], base]).rstrip(".")
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def matches(name: str, pattern: str) -> bool:
    """Whether a module, or a name in it, belongs to a pattern of modules."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def layer(name: str) -> int:
    """
    The layer of a module.

    @return: 0 is the top.
    """
    found = [
        ("*" not in pattern, len(pattern), number)
        for number, patterns in enumerate(LAYERS)
        for pattern in patterns
        if matches(name, pattern)
    ]
    return max(found)[2]


class ImportTests(SynchronousTestCase):
    """
    The architecture.
    """

    def test_oneWay(self) -> None:
        """Nothing imports from a layer above its own."""
        known = {name for name, _ in modules()}
        wrong = []
        for name, tree in modules():
            if name.count(".") == 0 or (name.count(".") == 1 and (ROOT / name.split(".")[1]).is_dir()):
                continue  # packages hold a docstring only
            for target, line in imported(name, tree):
                if target.split(".")[0] != "ssa":
                    continue
                module = target if target in known else target.rpartition(".")[0]
                if module in known and module != "ssa" and layer(module) < layer(name):
                    wrong.append(f"{name}:{line} imports {module}")
        self.assertEqual(wrong, [])

    def test_packagesAreEmpty(self) -> None:
        """A package's C{__init__} holds its docstring and nothing else."""
        for path in ROOT.rglob("__init__.py"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            self.assertEqual([type(node) for node in body], [ast.Expr], str(path))

    def test_noReactor(self) -> None:
        """Codec, messages, policy and errors need no event loop."""
        wrong = [
            f"{name}:{line} imports {target}"
            for name, tree in modules()
            if any(matches(name, pattern) for pattern in NO_REACTOR)
            for target, line in imported(name, tree)
            if matches(target, "twisted.internet") and not any(matches(target, pure) for pure in PURE_TWISTED)
        ]
        self.assertEqual(wrong, [])

    def test_globalReactor(self) -> None:
        """Only the entries import the global reactor."""
        wrong = [
            f"{name}:{line}"
            for name, tree in modules()
            if name not in REACTOR_USERS
            for target, line in imported(name, tree)
            if matches(target, "twisted.internet.reactor")
        ]
        self.assertEqual(wrong, [])

    def test_netlinkStandsAlone(self) -> None:
        """The netlink library imports nothing else of the project."""
        wrong = [
            f"{name}:{line} imports {target}"
            for name, tree in modules()
            if matches(name, "ssa.netlink")
            for target, line in imported(name, tree)
            if target.split(".")[0] == "ssa" and not matches(target, "ssa.netlink")
        ]
        self.assertEqual(wrong, [])

    def test_everyFileNamesItsLicense(self) -> None:
        """The first line of every Python file is its SPDX identifier."""
        for path in ROOT.rglob("*.py"):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            self.assertEqual(first, "# SPDX-License-Identifier: MIT", str(path))

    def test_notAPackage(self) -> None:
        """Twisted's plug-in directory stays a namespace of many distributions."""
        for name in ("twisted/__init__.py", "twisted/plugins/__init__.py"):
            self.assertFalse((ROOT.parent / name).exists() and (ROOT.parent / "setup.py").exists(), name)
