# SPDX-License-Identifier: MIT
"""
Generic netlink: families and multicast groups by name, commands with attributes (C{linux/genetlink.h}).

The kernel numbers families and groups anew whenever a module is loaded.  Its family "nlctrl", the only one with a fixed
number, tells the numbers and notifies of changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from errno import ENOENT
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ssa.netlink.codec import (
    NLM_F_ACK,
    AttributePolicy,
    AttributeTable,
    Buffer,
    CodecError,
    GenericMessage,
    Kind,
    NetlinkMessage,
    Value,
)
from ssa.netlink.errors import BadReplyError, NetlinkError, UnknownGroupError
from ssa.netlink.protocol import NetlinkProtocol

GENL_ID_CTRL = 16
"""C{nlmsg_type} of the family "nlctrl", and the number of its multicast group "notify"."""

CTRL_CMD_NEWFAMILY = 1
CTRL_CMD_DELFAMILY = 2
CTRL_CMD_GETFAMILY = 3
CTRL_CMD_NEWMCAST_GRP = 7
CTRL_CMD_DELMCAST_GRP = 8

GENL_ADMIN_PERM = 0x01
GENL_CMD_CAP_DO = 0x02
GENL_CMD_CAP_DUMP = 0x04
GENL_CMD_CAP_HASPOL = 0x08
GENL_UNS_ADMIN_PERM = 0x10

MAXIMUM_NAME = 15
"""The most bytes of the name of a family or group (C{GENL_NAMSIZ} counts the NUL)."""

OPERATION = AttributeTable(
    AttributePolicy(1, "id", Kind.U32, required=True),
    AttributePolicy(2, "flags", Kind.U32),
    ignoreUnknown=True,
)
"""C{CTRL_ATTR_OP_*}."""

GROUP = AttributeTable(
    AttributePolicy(1, "name", Kind.STRING, minimum=1, maximum=MAXIMUM_NAME, required=True),
    AttributePolicy(2, "id", Kind.U32, required=True),
    ignoreUnknown=True,
)
"""C{CTRL_ATTR_MCAST_GRP_*}."""

CONTROL = AttributeTable(
    AttributePolicy(1, "familyID", Kind.U16),
    AttributePolicy(2, "familyName", Kind.STRING, minimum=1, maximum=MAXIMUM_NAME),
    AttributePolicy(3, "version", Kind.U32),
    AttributePolicy(4, "headerSize", Kind.U32),
    AttributePolicy(5, "maximumAttribute", Kind.U32),
    AttributePolicy(6, "operations", Kind.INDEXED, maximum=1024, table=OPERATION),
    AttributePolicy(7, "groups", Kind.INDEXED, maximum=1024, table=GROUP),
    ignoreUnknown=True,
)
"""C{CTRL_ATTR_*}: what "nlctrl" says of a family."""

_NOTHING = AttributeTable(ignoreUnknown=True)


@dataclass(frozen=True)
class Operation:
    """
    One command of a family.

    @ivar number: C{genlmsghdr.cmd}.
    @ivar flags: C{GENL_ADMIN_PERM}, C{GENL_CMD_CAP_DO} and so on.
    """

    number: int
    flags: int


@dataclass(frozen=True)
class Family:
    """
    A generic netlink family, as the kernel describes it.

    @ivar number: C{nlmsg_type} of its messages; another one after each registration.
    @ivar headerSize: bytes of its own header between C{genlmsghdr} and the attributes; almost always 0.
    @ivar maximumAttribute: the highest attribute number, 0 if the kernel does not tell.
    @ivar groups: the numbers of its multicast groups by name.
    """

    name: str
    number: int
    version: int = 1
    headerSize: int = 0
    maximumAttribute: int = 0
    operations: tuple[Operation, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def fromMessage(cls, message: GenericMessage) -> Family:
        """
        Understand what "nlctrl" says.

        @raise CodecError: it is something else.
        @raise BadReplyError: the name or the number is missing.
        """
        values = cast("dict[str, Any]", CONTROL.decode(message.attributes))
        if "familyID" not in values or "familyName" not in values:
            raise BadReplyError("a family without a name or a number")
        return cls(
            values["familyName"],
            values["familyID"],
            values.get("version", 1),
            values.get("headerSize", 0),
            values.get("maximumAttribute", 0),
            tuple(Operation(one["id"], one.get("flags", 0)) for one in values.get("operations", ())),
            {one["name"]: one["id"] for one in values.get("groups", ())},
        )


@dataclass(frozen=True)
class Reply:
    """
    What a family has answered.

    @ivar command: C{genlmsghdr.cmd}.
    @ivar values: the attributes, by the names in the caller's table.
    @ivar header: the family's own header, mostly empty.
    """

    command: int
    values: dict[str, Value]
    header: bytes = b""


class GenericNetlinkProtocol(NetlinkProtocol):
    """
    Speaks with generic netlink families by their names.  Its port is one of C{NETLINK_GENERIC}.

    Descriptions of families are kept for as long as the kernel would tell of a change.

    A notification of a family goes to the method C{notify_NAME(message, group)}, where NAME is that of the family with "_" for
    everything that a Python name cannot have, C{message} is a L{GenericMessage} and C{group} is the group's name, "" if it
    was sent to this port alone.  Notifications of families without such a method go to L{familyNotification}.  A family
    is known by L{family}, L{joinGroup} or L{call}.
    """

    def __init__(self, clock: IReactorTime) -> None:
        """
        @param clock: measures the time of requests.
        """
        super().__init__(clock)
        self._families: dict[str, Family] = {}
        self._byNumber: dict[int, Family] = {}
        self._watching = False

    # Families

    def family(self, name: str) -> Deferred[Family]:
        """
        Look up a family.

        @return: fires with its description; fails as L{NetlinkProtocol.request} does, with L{NetlinkError} C{ENOENT}: the
            kernel has none of that name (its module may not be loaded).
        """
        return Deferred.fromCoroutine(self._family(name))

    async def _family(self, name: str) -> Family:
        known = self._families.get(name)
        if known is not None and self._watching:
            return known
        payload = GenericMessage(CTRL_CMD_GETFAMILY, 1, CONTROL.encode({"familyName": name})).encode()
        message = await self.request(GENL_ID_CTRL, payload)
        if message is None:
            raise BadReplyError("the kernel does not describe the family")
        found = self._describe(message)
        if found.name != name:
            raise BadReplyError(f"the kernel describes {found.name} instead of {name}")
        self._remember(found)
        return found

    def families(self) -> Deferred[list[Family]]:
        """
        List all families with their commands and groups.

        @return: fires with their descriptions; fails as L{NetlinkProtocol.dump} does.
        """
        return Deferred.fromCoroutine(self._list())

    async def _list(self) -> list[Family]:
        payload = GenericMessage(CTRL_CMD_GETFAMILY, 1, b"").encode()
        return [self._describe(message) for message in await self.dump(GENL_ID_CTRL, payload, attempts=5)]

    @staticmethod
    def _describe(message: NetlinkMessage) -> Family:
        if message.type != GENL_ID_CTRL:
            raise BadReplyError(f"a message of type {message.type} instead of a family's description")
        try:
            return Family.fromMessage(GenericMessage.decode(message.payload))
        except CodecError as error:
            raise BadReplyError(str(error)) from error

    def _remember(self, family: Family) -> None:
        self._forgetFamily(family.name)
        self._families[family.name] = family
        self._byNumber[family.number] = family

    def _forgetFamily(self, name: str) -> None:
        family = self._families.pop(name, None)
        if family is not None:
            self._byNumber.pop(family.number, None)

    def familyAdded(self, family: Family) -> None:
        """A family was registered: its module was loaded.  Memberships in its groups have to be taken anew."""

    def familyRemoved(self, family: Family) -> None:
        """A family was unregistered: its module was removed.  The kernel has ended all memberships in its groups."""

    # Groups

    def joinGroup(self, family: str, group: str) -> Deferred[int]:
        """
        Receive the notifications of a multicast group.

        @return: fires with the group's number; fails as L{family} does, with L{UnknownGroupError}, or with L{OSError}
            C{EPERM}.
        """
        return Deferred.fromCoroutine(self._membership(family, group, join=True))

    def leaveGroup(self, family: str, group: str) -> Deferred[int]:
        """
        Receive the notifications of a multicast group no longer.

        @return: as L{joinGroup}.
        """
        return Deferred.fromCoroutine(self._membership(family, group, join=False))

    async def _membership(self, family: str, group: str, join: bool) -> int:
        number = (await self._family(family)).groups.get(group)
        if number is None:
            raise UnknownGroupError(f"{family} has no multicast group {group}")
        port = self._listening()
        if join:
            port.joinGroup(number)
        elif number != GENL_ID_CTRL:  # which the cache needs
            port.leaveGroup(number)
        return number

    # Commands

    def call(
        self,
        family: str,
        command: int,
        values: Mapping[str, Value] | None = None,
        table: AttributeTable = _NOTHING,
        replyTable: AttributeTable | None = None,
        flags: int = NLM_F_ACK,
        timeout: float | None = None,
        header: bytes = b"",
    ) -> Deferred[Reply | None]:
        """
        Ask a family to do one thing.

        @param command: C{genlmsghdr.cmd}.
        @param values: attributes by name.
        @param table: encodes them.
        @param replyTable: decodes those of the reply, by default C{table}.
        @param flags: as for L{NetlinkProtocol.request}.
        @param timeout: seconds, by default L{NetlinkProtocol.timeout}.
        @param header: the family's own header, padded to four bytes.
        @return: fires with the reply or, if there was none before the acknowledgement, with None; fails as
            L{NetlinkProtocol.request} and L{family} do.
        """
        decode = table if replyTable is None else replyTable
        return Deferred.fromCoroutine(self._call(family, command, values or {}, table, decode, flags, timeout, header))

    async def _call(
        self,
        name: str,
        command: int,
        values: Mapping[str, Value],
        table: AttributeTable,
        replyTable: AttributeTable,
        flags: int,
        timeout: float | None,
        header: bytes,
    ) -> Reply | None:
        family = await self._family(name)
        payload = self._payload(family, command, values, table, header)
        try:
            message = await self.request(family.number, payload, flags, timeout)
        except NetlinkError as error:
            self._doubt(family, error)
            raise
        return None if message is None else self._decode(family, message, replyTable)

    def callDump(
        self,
        family: str,
        command: int,
        values: Mapping[str, Value] | None = None,
        table: AttributeTable = _NOTHING,
        replyTable: AttributeTable | None = None,
        timeout: float | None = None,
        attempts: int = 1,
        header: bytes = b"",
    ) -> Deferred[list[Reply]]:
        """
        Ask a family for all there is.

        @param attempts: how often to ask, if the answer changes while it is given.
        @return: fires with the replies; fails as L{NetlinkProtocol.dump} and L{family} do.  The other parameters are those
            of L{call}.
        """
        decode = table if replyTable is None else replyTable
        return Deferred.fromCoroutine(
            self._callDump(family, command, values or {}, table, decode, timeout, attempts, header)
        )

    async def _callDump(
        self,
        name: str,
        command: int,
        values: Mapping[str, Value],
        table: AttributeTable,
        replyTable: AttributeTable,
        timeout: float | None,
        attempts: int,
        header: bytes,
    ) -> list[Reply]:
        family = await self._family(name)
        payload = self._payload(family, command, values, table, header)
        try:
            messages = await self.dump(family.number, payload, timeout=timeout, attempts=attempts)
        except NetlinkError as error:
            self._doubt(family, error)
            raise
        return [self._decode(family, message, replyTable) for message in messages]

    def _doubt(self, family: Family, error: NetlinkError) -> None:
        """C{ENOENT} may also mean that the kernel has no family of that number any more."""
        if error.errno == ENOENT and family.number != GENL_ID_CTRL:
            self._forgetFamily(family.name)

    @staticmethod
    def _payload(
        family: Family, command: int, values: Mapping[str, Value], table: AttributeTable, header: bytes
    ) -> Buffer:
        if len(header) != (family.headerSize + 3) & ~3:
            raise ValueError(f"{family.name} has a header of {family.headerSize} bytes")
        return GenericMessage(command, family.version & 0xFF, header + table.encode(values)).encode()

    @staticmethod
    def _decode(family: Family, message: NetlinkMessage, table: AttributeTable) -> Reply:
        if message.type != family.number:
            raise BadReplyError(f"a message of type {message.type} instead of one of {family.name}")
        skip = (family.headerSize + 3) & ~3
        try:
            generic = GenericMessage.decode(message.payload)
            if len(generic.attributes) < skip:
                raise BadReplyError(f"the header of {family.name} is cut off")
            values = table.decode(generic.attributes[skip:])
        except CodecError as error:
            raise BadReplyError(str(error)) from error
        return Reply(generic.command, values, bytes(generic.attributes[: family.headerSize]))

    # Notifications

    def familyNotification(self, family: Family, message: GenericMessage, group: str) -> None:
        """
        A family without a method of its own notifies.

        @param group: the name of the multicast group, or "".
        """

    def connectionMade(self) -> None:
        """Ask the kernel to tell of families that come and go; without it nothing is kept."""
        super().connectionMade()
        try:
            self._listening().joinGroup(GENL_ID_CTRL)
        except OSError as error:
            self._log.warn("changes of generic netlink families cannot be watched: {why}", why=error.strerror)
        else:
            self._watching = True

    def connectionLost(self, reason: Failure) -> None:
        """The port is closed."""
        self._watching = False
        self._families.clear()
        self._byNumber.clear()
        super().connectionLost(reason)

    def overrun(self) -> None:
        """Messages were lost, perhaps one that a family has gone."""
        super().overrun()
        self._families.clear()
        self._byNumber.clear()

    def notificationReceived(self, message: NetlinkMessage, group: int) -> None:
        """Find the family and its method."""
        try:
            generic = GenericMessage.decode(message.payload)
            if message.type == GENL_ID_CTRL:
                self._controlReceived(generic, group)
                return
        except (CodecError, BadReplyError) as error:
            self.refused.note("refused a generic netlink notification: {why}", why=str(error))
            return
        family = self._byNumber.get(message.type)
        if family is None:
            self.refused.note("ignored a notification of the unknown netlink family {number}", number=message.type)
            return
        names = [name for name, number in family.groups.items() if number == group]
        if group and not names:
            self.refused.note("refused a notification of {family} in group {group}", family=family.name, group=group)
            return
        self._dispatch(family, generic, names[0] if names else "")

    def _controlReceived(self, message: GenericMessage, group: int) -> None:
        """A family comes or goes, or its groups do."""
        if message.command in (CTRL_CMD_NEWFAMILY, CTRL_CMD_DELFAMILY):
            family = Family.fromMessage(message)
            self._forgetFamily(family.name)
            added = message.command == CTRL_CMD_NEWFAMILY
            self._tell(self.familyAdded if added else self.familyRemoved, family)
        elif message.command in (CTRL_CMD_NEWMCAST_GRP, CTRL_CMD_DELMCAST_GRP):
            self._forgetFamily(Family.fromMessage(message).name)
        self._dispatch(_CONTROLLER, message, "notify" if group == GENL_ID_CTRL else "")

    def _dispatch(self, family: Family, message: GenericMessage, group: str) -> None:
        name = "".join(letter if letter.isalnum() else "_" for letter in family.name)
        method = getattr(self, f"notify_{name}", None)
        if method is None:
            self.familyNotification(family, message, group)
        else:
            method(message, group)


_CONTROLLER = Family("nlctrl", GENL_ID_CTRL, 2, groups={"notify": GENL_ID_CTRL})
