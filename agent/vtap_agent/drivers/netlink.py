"""Netlink (netlink(7), RFC 3549): requests, dumps and multicast events as raw messages, and the attributes in them.

Only the transport lives here; what rtnetlink's messages mean is `inventory/rtnetlink.py`'s business. Why not pyroute2:
docs/decisions/0040.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, Self

from vtap_agent.errors import Retry

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _LISTEN_ALL_NSID, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 1, 8, 10, 11, 12
_NLA_TYPE_MASK = 0x3FFF
_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71

_TIMEOUT = 5.0
"""Seconds. The kernel answers at once; this only keeps a bug from hanging the agent."""
_RECEIVE_BYTES = 1 << 16
_EVENT_BUFFER_BYTES = 1 << 20
_DUMP_TRIES = 5

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_COOKIE = struct.Struct("=Q")


class NetlinkError(Retry):
    """The kernel refused a request: `errno` as in errno(3)."""

    def __init__(self, number: int, reason: str = "") -> None:
        self.errno = number
        super().__init__(f"the kernel answers: {reason or os.strerror(number)}")


class Message(NamedTuple):
    """One netlink message without its header. `payload` starts with the family's own fixed header."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


class Event(NamedTuple):
    """A multicast message. `nsid` is the number of the namespace it comes from, as the listener's namespace numbers them.

    It is None for the listener's own namespace as long as that has no number for itself.
    """

    message: Message
    nsid: int | None


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes of a message from `offset` on, by type. Of attributes of one type the last counts."""
    found: dict[int, bytes] = {}
    end = len(data)
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[Message]:
    """The messages in one datagram."""
    offset, end = 0, len(data)
    while offset + _HEADER.size <= end:
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield Message(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


class Netlink:
    """A socket for requests, in the network namespace of the thread that makes it. Thread-safe; close it after use.

    All calls raise NetlinkError where the kernel refuses.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.settimeout(_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the socket; closing twice is fine."""
        self._socket.close()

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Ask for one thing to be done or told; returns the messages told before the acknowledgement."""
        with self._lock:
            return self._exchange(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)[0]

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Every object of a kind; asked again where the tables changed meanwhile, so that the answer is of one moment."""
        with self._lock:
            for _ in range(_DUMP_TRIES):
                found, interrupted = self._exchange(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
                if not interrupted:
                    return found
        raise NetlinkError(errno.EAGAIN, "the kernel's tables change faster than they can be read")

    def _exchange(self, kind: int, flags: int, body: bytes) -> tuple[list[Message], bool]:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        found: list[Message] = []
        interrupted = False
        while True:
            for message in messages(self._receive()):
                if message.sequence != self._sequence:
                    continue  # The rest of an exchange that timed out.
                interrupted = interrupted or bool(message.flags & NLM_F_DUMP_INTR)
                if message.kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise_refusal(message)
                    return found, interrupted
                found.append(message)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise NetlinkError(errno.ETIMEDOUT) from error


def _raise_refusal(message: Message) -> None:
    number = -_ERROR.unpack_from(message.payload)[0] if len(message.payload) >= _ERROR.size else 0
    if not number:
        return
    reason = ""
    if message.kind == _NLMSG_ERROR and message.flags & _NLM_F_ACK_TLVS:
        # With NETLINK_CAP_ACK only the header of the request comes back before the attributes.
        said = attributes(message.payload, _ERROR.size + _HEADER.size).get(_NLMSGERR_ATTR_MSG, b"")
        reason = said.rstrip(b"\0").decode(errors="replace")
    raise NetlinkError(number, reason)


class EventSocket:
    """Multicast groups of rtnetlink, of the present network namespace or, with `every_namespace`, of all it has numbers for.

    `receive` never blocks: wait until `fileno()` is readable. Needs CAP_NET_BROADCAST for `every_namespace`.
    """

    def __init__(self, groups: Iterable[int], *, every_namespace: bool = False) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BUFFER_BYTES)
        if every_namespace:
            self._socket.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
        self._socket.bind((0, 0))  # The kernel's events pass by sockets without an address.
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Release the socket; closing twice is fine."""
        self._socket.close()

    def receive(self) -> list[Event] | None:
        """What has arrived; None where the kernel had to drop events, so that anything may have changed."""
        found: list[Event] = []
        lost = False
        while True:
            try:
                data, ancillary, _flags, _address = self._socket.recvmsg(_RECEIVE_BYTES, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return None if lost else found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            nsid = _nsid_of(ancillary)
            found.extend(Event(message, nsid) for message in messages(data))


def _nsid_of(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, value in ancillary:
        if level == _SOL_NETLINK and kind == _LISTEN_ALL_NSID:
            return struct.unpack("=i", value)[0]
    return None


def enter_network_namespace(descriptor: int) -> None:
    """Move the calling *thread* into the network namespace that `descriptor` is open on, by setns(2). Raises OSError.

    Python 3.12 has os.setns; 3.11, which Debian 12 has, does not.
    """
    if _libc().setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def namespace_cookie(path: str) -> int:
    """A number that no other network namespace has had or will have since the machine started (SO_NETNS_COOKIE, Linux ≥ 5.14).

    Inode numbers, by contrast, are given again at once. Raises OSError where `path` is no network namespace or can't be entered.
    """
    with ThreadPoolExecutor(1) as thread:  # A thread of its own: it ends inside that namespace.
        return thread.submit(_cookie_inside, path).result()


def _cookie_inside(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_network_namespace(descriptor)
    finally:
        os.close(descriptor)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as inside:
        return _COOKIE.unpack(inside.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size))[0]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
