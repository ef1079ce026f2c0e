# SPDX-License-Identifier: MIT
"""The definition of the protocol, the C headers and the Python numbers agree, every way."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import textwrap
from enum import IntEnum
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from ssa import api
from ssa.errors import SSAError
from ssa.netlink.codec import MAXIMUM_PAYLOAD, Kind
from ssa.protocol import messages
from ssa.protocol.messages import Attribute, Command
from ssa.test import protocolpage

HEADERS = Path(__file__).resolve().parents[2] / "kernel-module"

WHEN_MISSING = "the headers are only in a source tree"


def readFile(name: str) -> str:
    path = HEADERS / name
    if not path.exists():
        raise SkipTest(WHEN_MISSING)
    return path.read_text()


def readSpecification() -> dict[str, Any]:
    text = readFile("ssa.yaml")
    try:
        import yaml
    except ImportError:
        raise SkipTest("needs PyYAML") from None
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def definesOf(text: str) -> dict[str, str]:
    """The object-like macros of a header."""
    return dict(re.findall(r"^#define[ \t]+(\w+)[ \t]+(\S.*?)[ \t]*(?:/\*.*)?$", text, re.MULTILINE))


def numbersOf(text: str, prefix: str) -> dict[str, int]:
    """The macros with a prefix that are numbers."""
    found = {}
    for name, value in definesOf(text).items():
        if name.startswith(prefix):
            found[name[len(prefix) :]] = int(value, 0)
    return found


def enumOf(text: str, name: str) -> dict[str, int]:
    """The numbered members of an enumeration."""
    body = re.search(rf"enum {name} {{(.*?)}};", text, re.DOTALL)
    assert body is not None, name
    return {member: int(value) for member, value in re.findall(r"(\w+) = (\d+)", body[1])}


def upper(name: str) -> str:
    return name.upper().replace("-", "_")


def asDictionary(enumeration: type[IntEnum], prefix: str = "") -> dict[str, int]:
    return {prefix + member.name: member.value for member in enumeration}


class SpecificationTests(SynchronousTestCase):
    """ssa.yaml, ssa_netlink.h and ssa.protocol.messages."""

    def setUp(self) -> None:
        self.specification = readSpecification()
        self.header = readFile("ssa_netlink.h")
        self.attributes = {one["name"]: one for one in self.specification["attribute-sets"][0]["attributes"]}
        self.operations = {one["name"]: one for one in self.specification["operations"]["list"]}
        self.constants = {
            one["name"]: one["value"] for one in self.specification["definitions"] if one["type"] == "const"
        }

    def test_family(self) -> None:
        """Name, version and group."""
        self.assertEqual(self.specification["name"], messages.FAMILY_NAME)
        self.assertEqual(self.specification["version"], messages.PROTOCOL_VERSION)
        self.assertEqual(
            [one["name"] for one in self.specification["mcast-groups"]["list"]], [messages.MULTICAST_GROUP]
        )
        defines = definesOf(self.header)
        self.assertEqual(defines["SSA_GENL_NAME"], f'"{messages.FAMILY_NAME}"')
        self.assertEqual(defines["SSA_GENL_VERSION"], str(messages.PROTOCOL_VERSION))
        self.assertEqual(defines["SSA_MCGRP_NOTIFY"], f'"{messages.MULTICAST_GROUP}"')

    def test_constants(self) -> None:
        """The bounds."""
        python = {
            "protocol-version": messages.PROTOCOL_VERSION,
            "supervised-type": messages.SUPERVISED_TYPE,
            "maximum-value": messages.MAXIMUM_VALUE,
            "maximum-chunk": MAXIMUM_PAYLOAD,
            "maximum-chunks": messages.SHAPES[Attribute.OPTVAL].count,
            "maximum-comm": messages.MAXIMUM_NAME,
            "maximum-path": messages.MAXIMUM_PATH,
            "maximum-sockaddr": messages.SHAPES[Attribute.SOCKADDR_REMOTE].maximum,
        }
        self.assertEqual(self.constants, python)
        defines = definesOf(self.header)
        self.assertEqual({name: int(defines["SSA_" + upper(name)]) for name in self.constants}, python)

    def test_commands(self) -> None:
        """The numbers of the operations."""
        specified = {upper(name): one["value"] for name, one in self.operations.items()}
        self.assertEqual(specified, asDictionary(Command))
        self.assertEqual(
            enumOf(self.header, "ssa_command"), {"SSA_C_UNSPEC": 0, **asDictionary(Command, "SSA_C_")}
        )

    def test_attributes(self) -> None:
        """The numbers of the attributes."""
        specified = {upper(name): one["value"] for name, one in self.attributes.items()}
        self.assertEqual(specified, asDictionary(Attribute))
        self.assertEqual(
            enumOf(self.header, "ssa_attribute"), {"SSA_A_UNSPEC": 0, **asDictionary(Attribute, "SSA_A_")}
        )

    def test_enumerations(self) -> None:
        """Roles and data paths."""
        for name, enumeration in (("role", api.Role), ("data-path", api.DataPath)):
            entries = next(one["entries"] for one in self.specification["definitions"] if one["name"] == name)
            self.assertEqual({upper(entry): number for number, entry in enumerate(entries)}, asDictionary(enumeration))
            members = enumOf(self.header, "ssa_" + name.replace("-", "_"))
            self.assertEqual(members, asDictionary(enumeration, f"SSA_{upper(name)}_"))

    def test_shapes(self) -> None:
        """The types and bounds of the attributes."""
        for attribute in Attribute:
            shape = messages.SHAPES[attribute]
            one = self.attributes[attribute.name.lower().replace("_", "-")]
            self.assertEqual(one["type"], shape.kind.value, attribute)
            self.assertEqual(one.get("multi-attr", False), shape.count > 1, attribute)
            self.assertTrue(one["doc"])
            if shape.kind in (Kind.STRING, Kind.BINARY):
                checks = one["checks"]
                longest = checks["max-len"]
                self.assertEqual(self.constants.get(longest, longest), shape.maximum, attribute)
                self.assertEqual(checks.get("min-len", 0), shape.minimum, attribute)

    def carried(self, classes: dict[int, Any], command: Command) -> list[str]:
        return [part.attribute.name.lower().replace("_", "-") for part in classes[command].parts]

    def test_messages(self) -> None:
        """Each message carries what its operation says, and is of its kind."""
        for name, operation in self.operations.items():
            command = Command[upper(name)]
            kinds: dict[tuple[str, ...], dict[int, Any]] = {
                ("event",): {**messages.EVENTS},
                ("do", "request"): {**messages.ANSWERS, **messages.REQUESTS},
                ("do", "reply"): {**messages.REPLIES},
            }
            for path, classes in kinds.items():
                place = operation
                for step in path:
                    place = place.get(step, {})
                if command is Command.NEXT and path == ("event",):
                    self.assertEqual(place["attributes"], [])
                    continue
                self.assertEqual(bool(place), command in classes, (name, path))
                if place:
                    # A message's own order is that of its class; what it may carry is a set.
                    self.assertEqual(sorted(self.carried(classes, command)), sorted(place["attributes"]), name)
            self.assertTrue(operation["doc"])
            self.assertEqual(operation["attribute-set"], "ssa")

    def test_page(self) -> None:
        """The page of the documentation is made from it."""
        if not protocolpage.PAGE.exists():
            raise SkipTest("the documentation is only in a source tree")
        page = protocolpage.PAGE.read_text(encoding="utf-8")
        self.assertEqual(protocolpage.render(self.specification), page, "run python -m ssa.test.protocolpage")

    def test_answers(self) -> None:
        """Which events want an answer is written down in the same way in both places."""
        for command, event in messages.EVENTS.items():
            doc = self.operations[Command(command).name.lower().replace("_", "-")]["doc"]
            answers = messages.ANSWERED_BY.get(event, ())
            self.assertEqual(event.wantsAnswer, bool(answers))
            self.assertEqual("No answer" in doc, not answers)
            for answer in answers:
                self.assertIn(answer.command.name.lower().replace("_", "-"), doc)


class HeaderTests(SynchronousTestCase):
    """in_tls.h and ssa.api."""

    def setUp(self) -> None:
        self.header = readFile("in_tls.h")
        defines = definesOf(self.header)
        self.numbers = {name: int(value, 0) for name, value in defines.items() if re.match(r"(0x)?\d", value)}

    def python(self) -> dict[str, int]:
        return {
            "IPPROTO_TLS": api.IPPROTO_TLS,
            "AF_HOSTNAME": api.AF_HOSTNAME,
            "HOSTNAME_MAX": api.HOST_NAME_SIZE,
            **asDictionary(api.Option),
            **{member.name.replace("TLS_", "TLS_VERSION_"): member.value for member in api.Version},
            **asDictionary(api.PeerAuthentication, "TLS_PEER_AUTH_"),
            **asDictionary(api.Role, "TLS_ROLE_"),
        }

    def test_numbers(self) -> None:
        """Every number is in both, and the same."""
        self.assertEqual(self.numbers, self.python())

    def test_license(self) -> None:
        """Programs may use the header whatever their licence is."""
        for name in ("in_tls.h", "ssa_netlink.h"):
            first = readFile(name).splitlines()[0]
            self.assertEqual(first, "/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */")

    def compiled(self, compiler: str, arguments: list[str], header: str, body: str) -> None:
        """Compile a program that includes the header, and run it; it prints what is wrong."""
        if shutil.which(compiler) is None:
            raise SkipTest(f"needs {compiler}")
        directory = Path(self.mktemp())
        directory.mkdir()
        source = directory / ("source.cc" if compiler == "c++" else "source.c")
        source.write_text(f'#include "{header}"\n#include <stddef.h>\n#include <stdio.h>\n' + textwrap.dedent(body))
        command = [compiler, *arguments, "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{HEADERS}"]
        command += ["-o", str(directory / "program"), str(source)]
        built = subprocess.run(command, capture_output=True, text=True, timeout=120)
        self.assertEqual(built.returncode, 0, built.stderr)
        ran = subprocess.run([os.fspath(directory / "program")], capture_output=True, text=True, timeout=60)
        self.assertEqual((ran.returncode, ran.stdout), (0, ""))

    def checks(self) -> str:
        name = api.HostnameAddress("h", 1)
        lines = [f'if ({name} != {number}) printf("{name}\\n");' for name, number in self.python().items()]
        size = len(api.encodeAddress(name))
        lines.append(f'if (sizeof(struct sockaddr_host) != {size}) printf("sockaddr_host\\n");')
        lines.append('if (offsetof(struct sockaddr_host, sh_port) != 2) printf("sh_port\\n");')
        lines.append('if (offsetof(struct sockaddr_host, sh_addr) != 4) printf("sh_addr\\n");')
        size = struct.calcsize(api.UPGRADE_FORMAT)
        lines.append(f'if (sizeof(struct tls_upgrade) != {size}) printf("tls_upgrade\\n");')
        lines.append('if (offsetof(struct tls_upgrade, role) != 4) printf("role\\n");')
        return "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"

    def test_c(self) -> None:
        """The header is strict C89, and the compiler sees the same numbers and sizes."""
        self.compiled("cc", ["-std=c89"], "in_tls.h", self.checks())

    def test_cWithTheSystems(self) -> None:
        """It lives beside the system's own header of TLS."""
        if not os.path.exists("/usr/include/linux/tls.h"):
            raise SkipTest("needs the kernel's headers")
        self.compiled("cc", ["-std=gnu11"], "in_tls.h", "#include <linux/tls.h>\n" + self.checks())

    def test_cxx(self) -> None:
        """The header is C++ as well."""
        self.compiled("c++", ["-std=c++98"], "in_tls.h", self.checks())

    def test_protocolHeader(self) -> None:
        """The other header compiles too, and ends where the numbers end."""
        body = f"""
            int main(void)
            {{
                if (SSA_A_MAX != {max(Attribute)}) printf("attributes\\n");
                if (SSA_C_MAX != {max(Command)}) printf("commands\\n");
                return 0;
            }}
            """
        self.compiled("cc", ["-std=c89"], "ssa_netlink.h", body)
        self.compiled("c++", ["-std=c++98"], "ssa_netlink.h", body)


class AddressTests(SynchronousTestCase):
    """The addresses of the socket API."""

    def test_roundTrip(self) -> None:
        """What is encoded is decoded."""
        for address in (
            api.InternetAddress(socket.AF_INET, "192.0.2.1", 443),
            api.InternetAddress(socket.AF_INET6, "2001:db8::1", 443),
            api.InternetAddress(socket.AF_INET6, "fe80::1", 65535, 0x12345, 7),
            api.HostnameAddress("example.org", 443),
            api.HostnameAddress("x" * 119, 0),
        ):
            self.assertEqual(api.decodeAddress(api.encodeAddress(address)), address)

    def test_lengths(self) -> None:
        """Longer ones are taken as connect(2) does, shorter ones refused."""
        internet = api.encodeAddress(api.InternetAddress(socket.AF_INET, "192.0.2.1", 443))
        internet6 = api.encodeAddress(api.InternetAddress(socket.AF_INET6, "2001:db8::1", 443, 0, 9))
        name = api.encodeAddress(api.HostnameAddress("example.org", 443))
        self.assertEqual([len(one) for one in (internet, internet6, name)], [16, 28, 124])
        self.assertEqual(api.decodeAddress(internet + bytes(112)), api.decodeAddress(internet))
        self.assertEqual(api.decodeAddress(internet6[:24]), api.InternetAddress(socket.AF_INET6, "2001:db8::1", 443))
        self.assertEqual(api.decodeAddress(name[:16]), api.HostnameAddress("example.org", 443))
        self.assertRefused(b"", b"\2", internet[:15], internet6[:23], name[:15], internet + bytes(113), name[:4])

    def test_refused(self) -> None:
        """What no address can hold."""
        host = struct.pack("=H", api.AF_HOSTNAME) + b"\1\xbb"
        self.assertRefused(host + b"\0" * 120, host + b"x" * 120, host + b"a b\0", host + "ü\0".encode())
        for address in (
            api.HostnameAddress("", 1),
            api.HostnameAddress("x" * 120, 1),
            api.HostnameAddress("bücher.example", 1),
            api.HostnameAddress("a\0b", 1),
            api.HostnameAddress("a", 65536),
            api.InternetAddress(socket.AF_INET, "::1", 1),
            api.InternetAddress(socket.AF_INET, "127.1", 1),
            api.InternetAddress(socket.AF_INET6, "::1", -1),
            api.InternetAddress(socket.AF_INET6, "::1", 1, 1 << 32),
            api.InternetAddress(socket.AF_INET6, "::1", 1, 0, -1),
        ):
            self.assertEqual(self.assertRaises(SSAError, api.encodeAddress, address).errno, 22)

    def assertRefused(self, *data: bytes) -> None:
        for one in data:
            self.assertEqual(self.assertRaises(SSAError, api.decodeAddress, one).errno, 22, one)

    def test_family(self) -> None:
        """Other families are named as such."""
        self.assertEqual(self.assertRaises(SSAError, api.decodeAddress, b"\1\0abcdefghijklmn").errno, 97)
        unix = api.InternetAddress(socket.AF_UNIX, "x", 1)
        self.assertEqual(self.assertRaises(SSAError, api.encodeAddress, unix).errno, 97)
        self.assertEqual(self.assertRaises(SSAError, api.InternetAddress.fromSocket, 1, ("", 1)).errno, 97)
        self.assertEqual(self.assertRaises(SSAError, api.InternetAddress.fromSocket, 2, ("",)).errno, 22)

    def test_sockets(self) -> None:
        """They are what Python's sockets give and take."""
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.bind(api.InternetAddress(family, host, 0).forSocket())
                address = api.InternetAddress.fromSocket(family, sock.getsockname())
            self.assertEqual((address.family, address.host), (family, host))
            self.assertIn(host, str(address))
        scoped = api.InternetAddress.fromSocket(socket.AF_INET6, ("fe80::1%lo", 1, 2, 3))
        self.assertEqual(scoped, api.InternetAddress(socket.AF_INET6, "fe80::1", 1, 2, 3))
        self.assertEqual(str(scoped), "[fe80::1%3]:1")
        self.assertEqual(str(api.HostnameAddress("example.org", 1)), "example.org:1")
