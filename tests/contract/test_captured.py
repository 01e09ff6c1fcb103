"""The judge of copies finds every wrong checksum, and nothing in packets that are right or carry none."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.contract import captured, checksums
from tests.unit.cli import pcapng
from tests.unit.pipeline import frames

MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
ENDS = {4: (frames.POD4, frames.PEER4), 6: (frames.POD6, frames.PEER6)}
ETHERNET, IP = 14, {4: 20, 6: 40}
TAGS = ((0x88A8, 30), (0x8100, 7))
HOP_BY_HOP = bytes.fromhex("3a00050200000000")
"""With MLD's router alert; ICMPv6 comes next."""


def icmp(version: int, body: bytes) -> bytes:
    a, b = ENDS[version]
    kind = 8 if version == 4 else 128
    covered = b"" if version == 4 else frames.pseudo(a, b, 58, 4 + len(body))
    return struct.pack(">BBH", kind, 0, frames.checksum(covered + bytes([kind, 0, 0, 0]) + body)) + body


def made(version: int, protocol: int, payload: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    a, b = ENDS[version]
    return frames.ethernet(MAC_B, MAC_A, frames.ethertype(a), frames.ip(a, b, protocol, payload), tags)


def packets() -> dict[str, tuple[bytes, int, str]]:
    """Right ones: (frame, where its payload begins, the name of the checksum in there)."""
    found: dict[str, tuple[bytes, int, str]] = {}
    for version, (a, b) in ENDS.items():
        at = ETHERNET + IP[version]
        for body in (b"", b"odd", bytes(range(200))):
            ways = {
                "UDP": (17, frames.udp(a, b, 9, 80, body)),
                "TCP": (6, frames.tcp(a, b, 9, 80, body)),
                "ICMP" if version == 4 else "ICMPv6": (1 if version == 4 else 58, icmp(version, body)),
            }
            for name, (protocol, payload) in ways.items():
                found[f"{name} {version} {len(body)}"] = made(version, protocol, payload), at, name
    udp = frames.udp(frames.POD4, frames.PEER4, 9, 80, b"tagged")
    found["tagged"] = made(4, 17, udp, TAGS), ETHERNET + 8 + 20, "UDP"
    mld = frames.ethernet(MAC_B, MAC_A, 0x86DD, frames.ipv6(*ENDS[6], 0, HOP_BY_HOP + icmp(6, bytes(20))))
    found["MLD"] = mld, ETHERNET + 40 + 8, "ICMPv6"
    return found


PACKETS = packets()


@pytest.mark.parametrize("name", PACKETS)
def test_a_right_packet_is_right_and_any_other_byte_in_its_payload_is_not(name: str) -> None:
    frame, at, said = PACKETS[name]
    assert checksums.wrong(frame) == ""
    assert checksums.wrong(frame + bytes(18)) == "", "what Ethernet adds to short frames is nobody's"
    for place in range(at, len(frame)):
        broken = bytearray(frame)
        broken[place] ^= 0x5A
        lacks = said == "UDP" and place in (at + 6, at + 7) and not any(broken[at + 6 : at + 8])
        assert lacks or said in checksums.wrong(bytes(broken)), f"byte {place}"


def test_a_checksum_that_is_left_to_the_device_is_wrong() -> None:
    for version, (a, b) in ENDS.items():
        assert "TCP checksum" in checksums.wrong(made(version, 6, frames.tcp_super(a, b, 1, 2, b"partial")))
        assert "UDP checksum" in checksums.wrong(made(version, 17, frames.udp_partial(a, b, 1, 2, b"partial")))


def test_ipv4s_own_header() -> None:
    frame = bytearray(PACKETS["UDP 4 3"][0])
    frame[ETHERNET + 8] -= 1
    assert "IPv4 header" in checksums.wrong(bytes(frame))


def test_udp_may_do_without_over_ipv4_alone() -> None:
    for version, said in ((4, ""), (6, "UDP over IPv6 without a checksum")):
        frame, at, _ = PACKETS[f"UDP {version} 3"]
        assert checksums.wrong(frame[: at + 6] + bytes(2) + frame[at + 8 :]) == said


def test_a_packet_that_ends_early_is_wrong() -> None:
    for version in ENDS:
        assert "are there" in checksums.wrong(PACKETS[f"UDP {version} 3"][0][:-1])


def test_of_a_fragment_only_the_header_is_looked_at() -> None:
    for field in (0x2000, 0x2001, 0x0001):
        packet = frames.ipv4(frames.POD4, frames.PEER4, 17, bytes(64), fragment=field)
        assert checksums.wrong(frames.ethernet(MAC_B, MAC_A, 0x0800, packet)) == ""
    fragment = frames.ipv6(*ENDS[6], 44, bytes.fromhex("1100000100000001") + bytes(64))
    assert checksums.wrong(frames.ethernet(MAC_B, MAC_A, 0x86DD, fragment)) == ""


def test_other_protocols_have_none() -> None:
    assert checksums.wrong(frames.ethernet(MAC_B, MAC_A, 0x0806, bytes(28))) == ""
    assert checksums.wrong(made(4, 47, b"GRE")) == checksums.wrong(made(6, 59, b"")) == ""


def test_a_capture_with_a_wrong_packet_is_refused_unless_it_was_cut(tmp_path: Path) -> None:
    right, broken = PACKETS["UDP 4 200"][0], bytearray(PACKETS["UDP 6 200"][0])
    broken[-1] ^= 1
    begin = pcapng.SECTION + pcapng.interface("shop/web-0/eth0 egress") + pcapng.packet(0, pcapng.NOON, right)
    file = tmp_path / "a.pcapng"
    file.write_bytes(begin + pcapng.packet(0, pcapng.NOON + 5, bytes(broken)))
    with pytest.raises(AssertionError, match=r"1 of 2 copies.*shop/web-0/eth0 egress: UDP checksum"):
        captured.stored([file])
    cut = bytearray(pcapng.packet(0, pcapng.NOON + 5, bytes(broken)))
    struct.pack_into("<I", cut, 8 + 16, len(broken) + 1)
    file.write_bytes(begin + cut)
    whole, rest = captured.stored([file])
    assert (whole.is_cut, rest.is_cut, rest.time_ns) == (False, True, pcapng.NOON + 5)
