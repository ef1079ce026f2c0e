# SPDX-License-Identifier: MIT
"""L{ssa.netlink} against another implementation, pyroute2, in both directions; skipped where it is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from ssa.netlink.codec import GenericMessage, NetlinkMessage, decodeMessage
from ssa.netlink.generic import CONTROL, GENL_ID_CTRL, Family, GenericNetlinkProtocol, Operation
from ssa.netlink.port import NETLINK_GENERIC, NetlinkPort
from ssa.test.netdevices import ATTRIBUTES, DEVICE

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
FAMILIES = st.builds(
    Family,
    NAMES,
    U16,
    U32,
    U32,
    U32,
    st.lists(st.builds(Operation, U32, U32), min_size=1, max_size=5).map(tuple),
    st.dictionaries(NAMES, U32, min_size=1, max_size=5),
)
THEIR_NAMES = {
    "CTRL_ATTR_FAMILY_NAME": "familyName",
    "CTRL_ATTR_FAMILY_ID": "familyID",
    "CTRL_ATTR_VERSION": "version",
    "CTRL_ATTR_HDRSIZE": "headerSize",
    "CTRL_ATTR_MAXATTR": "maximumAttribute",
}


def oracle(name: str) -> ModuleType:
    """A module of pyroute2."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SkipTest("pyroute2 is not installed") from error


def asFamily(message: Any) -> Family:
    """Read pyroute2's message of "nlctrl"."""
    value = message.get_attr
    operations = value("CTRL_ATTR_OPS") or []
    groups = value("CTRL_ATTR_MCAST_GROUPS") or []
    return Family(
        value("CTRL_ATTR_FAMILY_NAME"),
        value("CTRL_ATTR_FAMILY_ID"),
        value("CTRL_ATTR_VERSION"),
        value("CTRL_ATTR_HDRSIZE"),
        value("CTRL_ATTR_MAXATTR"),
        tuple(Operation(one.get_attr("CTRL_ATTR_OP_ID"), one.get_attr("CTRL_ATTR_OP_FLAGS")) for one in operations),
        {one.get_attr("CTRL_ATTR_MCAST_GRP_NAME"): one.get_attr("CTRL_ATTR_MCAST_GRP_ID") for one in groups},
    )


class CodecTests(SynchronousTestCase):
    """Messages, in both directions."""

    @settings(max_examples=60, deadline=None)
    @given(FAMILIES, U32, U32)
    def test_theyReadOurs(self, family: Family, sequence: int, port: int) -> None:
        """A description of a family that we write, with nests and arrays, is read by pyroute2."""
        values: dict[str, Any] = {
            "familyName": family.name,
            "familyID": family.number,
            "version": family.version,
            "headerSize": family.headerSize,
            "maximumAttribute": family.maximumAttribute,
            "operations": [{"id": one.number, "flags": one.flags} for one in family.operations],
            "groups": [{"name": name, "id": number} for name, number in family.groups.items()],
        }
        payload = GenericMessage(1, 2, CONTROL.encode(values)).encode()
        theirs = oracle("pyroute2.netlink").ctrlmsg(NetlinkMessage(GENL_ID_CTRL, 2, sequence, port, payload).encode())
        theirs.decode()
        header = theirs["header"]
        self.assertEqual(
            (header["type"], header["flags"], header["sequence_number"], header["pid"], theirs["cmd"], theirs["version"]),
            (GENL_ID_CTRL, 2, sequence, port, 1, 2),
        )
        self.assertEqual(asFamily(theirs), family)

    @settings(max_examples=60, deadline=None)
    @given(st.permutations(sorted(THEIR_NAMES)), NAMES, U16, U32, U32, U32)
    def test_weReadTheirs(self, order: list[str], name: str, number: int, sequence: int, port: int, other: int) -> None:
        """A message that pyroute2 writes is read by us."""
        values: dict[str, Any] = dict.fromkeys(THEIR_NAMES, other)
        values["CTRL_ATTR_FAMILY_NAME"] = name
        values["CTRL_ATTR_FAMILY_ID"] = number
        theirs = oracle("pyroute2.netlink").ctrlmsg()
        theirs["header"]["type"] = GENL_ID_CTRL
        theirs["header"]["flags"] = 5
        theirs["header"]["sequence_number"] = sequence
        theirs["header"]["pid"] = port
        theirs["cmd"] = 3
        theirs["version"] = 1
        theirs["attrs"] = [(key, values[key]) for key in order]
        theirs.encode()
        ours = decodeMessage(bytes(theirs.data))
        self.assertEqual((ours.type, ours.flags, ours.sequence, ours.port), (GENL_ID_CTRL, 5, sequence, port))
        generic = GenericMessage.decode(ours.payload)
        self.assertEqual((generic.command, generic.version), (3, 1))
        decoded = CONTROL.decode(generic.attributes)
        self.assertEqual(decoded, {THEIR_NAMES[key]: values[key] for key in order})

    @settings(max_examples=30, deadline=None)
    @given(NAMES, st.integers(0, 2**31 - 1), U32)
    def test_devices(self, name: str, index: int, flags: int) -> None:
        """C{NETLINK_ROUTE}, whose messages have a header of another kind."""
        module = oracle("pyroute2.netlink.rtnl.ifinfmsg")
        payload = DEVICE.pack(0, 1, index, flags, 0) + ATTRIBUTES.encode({"name": name, "information": {"kind": "dummy"}})
        theirs = module.ifinfmsg(NetlinkMessage(16, 0, 1, 0, payload).encode())
        theirs.decode()
        self.assertEqual((theirs["index"], theirs["flags"], theirs.get_attr("IFLA_IFNAME")), (index, flags, name))
        self.assertEqual(theirs.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND"), "dummy")
        again = module.ifinfmsg()
        again["ifi_type"], again["index"], again["flags"] = 1, index, flags
        again["attrs"] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "dummy")]})]
        again.encode()
        ours = decodeMessage(bytes(again.data))
        self.assertEqual(DEVICE.unpack_from(ours.payload), (0, 1, index, flags, 0))
        self.assertEqual(
            ATTRIBUTES.decode(ours.payload[DEVICE.size :]), {"name": name, "information": {"kind": "dummy"}}
        )


class KernelTests(TestCase):
    """The kernel's answers, as both understand them."""

    timeout = 30

    def test_families(self) -> Deferred[None]:
        """Both list the same families, with the same commands and groups."""
        return Deferred.fromCoroutine(self.compare())

    async def compare(self) -> None:
        """List with both."""
        from twisted.internet import reactor

        messages = oracle("pyroute2.netlink")
        protocol = GenericNetlinkProtocol(reactor)
        port = NetlinkPort(protocol, NETLINK_GENERIC, reactor)
        try:
            port.startListening()
        except CannotListenError as error:
            raise SkipTest(f"netlink is not allowed here: {error.socketError}") from error
        self.addCleanup(port.stopListening)
        theirs = oracle("pyroute2").GenericNetlinkSocket()
        self.addCleanup(theirs.close)
        theirs.bind("nlctrl", messages.ctrlmsg)
        request = messages.ctrlmsg()
        request["cmd"] = 3
        request["version"] = 1
        listed = [asFamily(one) for one in theirs.nlm_request(request, msg_type=GENL_ID_CTRL, msg_flags=0x301)]
        self.assertEqual(await protocol.families(), listed)
