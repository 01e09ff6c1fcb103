"""Certificates are good, renewed in time, and a new authority is known before it is used."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from prometheus_client import generate_latest

from vtap_operator import metrics
from vtap_operator.certificate_keeper import AUTHORITY, CertificateKeeper
from vtap_operator.certificates import AUTHORITY_LIFE, LEAF_LIFE, OVERLAP, agent_leaf, authority, collector_leaf, issued
from vtap_operator.client import Client
from vtap_operator.resources import Resource

NOW = datetime.now(UTC).replace(microsecond=0)
AGENT = agent_leaf()
COLLECTOR = collector_leaf("vtap-collector-default", "vtap-system")


def trusted(data: dict[str, bytes]) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(data["ca.crt"])


def test_nothing_changes_while_nothing_is_due() -> None:
    ca = authority(None, NOW)
    leaf = issued(AGENT, None, ca, NOW)
    later = NOW + timedelta(days=50)
    assert authority(ca, later) == ca and issued(AGENT, leaf, ca, later) == leaf


def test_a_certificate_is_renewed_at_two_thirds_of_its_life() -> None:
    ca = authority(None, NOW)
    leaf = issued(AGENT, None, ca, NOW)
    assert issued(AGENT, leaf, ca, NOW + LEAF_LIFE * 0.66) == leaf
    assert issued(AGENT, leaf, ca, NOW + LEAF_LIFE * 0.67)["tls.crt"] != leaf["tls.crt"]


def test_a_new_authority_is_known_a_day_before_it_issues_and_the_old_one_until_it_expires() -> None:
    first = authority(None, NOW)
    due = NOW + AUTHORITY_LIFE * 0.67
    announced = authority(first, due)
    assert announced["tls.crt"] == first["tls.crt"] and len(trusted(dict(announced))) == 2
    assert authority(announced, due + OVERLAP * 0.9) == announced
    promoted = authority(announced, due + OVERLAP * 1.1)
    assert promoted["tls.crt"] == announced["next.crt"] and "next.crt" not in promoted
    assert trusted(dict(promoted)) == [*reversed(trusted(dict(announced)))]
    assert len(trusted(dict(authority(promoted, NOW + AUTHORITY_LIFE)))) == 1


def test_an_old_leaf_is_reissued_by_a_promoted_authority() -> None:
    first = authority(None, NOW)
    due = NOW + AUTHORITY_LIFE * 0.67
    leaf = issued(AGENT, None, first, due)
    promoted = authority(authority(first, due), due + OVERLAP * 1.1)
    again = issued(AGENT, leaf, promoted, due + OVERLAP * 1.1)
    assert again["tls.crt"] != leaf["tls.crt"] and again["ca.crt"] == promoted["ca.crt"]


@pytest.mark.parametrize("broken", ["tls.crt", "tls.key"])
def test_what_cannot_be_read_is_made_anew(broken: str) -> None:
    ca = authority(None, NOW)
    assert authority({**ca, broken: b"nonsense"}, NOW)["tls.crt"] != ca["tls.crt"]
    leaf = issued(AGENT, None, ca, NOW)
    assert issued(AGENT, {**leaf, broken: b""}, ca, NOW)["tls.crt"] != leaf["tls.crt"]
    other = authority(None, NOW)
    assert issued(AGENT, {**leaf, "tls.key": issued(AGENT, None, other, NOW)["tls.key"]}, ca, NOW)["tls.crt"] != leaf["tls.crt"]


def test_agent_and_collector_shake_hands_and_a_stranger_does_not(tmp_path: Path) -> None:
    ca = authority(None, NOW)
    server, client = issued(COLLECTOR, None, ca, NOW), issued(AGENT, None, ca, NOW)
    stranger = issued(AGENT, None, authority(None, NOW), NOW)
    name = "vtap-collector-default.vtap-system.svc"
    assert _handshake(tmp_path / "good", server, client, name) == "vtap-agent"
    assert "certificate" in _handshake(tmp_path / "name", server, client, "other.vtap-system.svc")
    assert "certificate" in _handshake(tmp_path / "stranger", server, {**stranger, "ca.crt": ca["ca.crt"]}, name)
    assert "certificate" in _handshake(tmp_path / "reversed", client, server, name)


def _context(folder: Path, who: str, data: dict[str, bytes], purpose: ssl.Purpose) -> ssl.SSLContext:
    folder.mkdir(exist_ok=True)
    for key, value in data.items():
        (folder / f"{who}.{key}").write_bytes(value)
    context = ssl.create_default_context(purpose, cafile=str(folder / f"{who}.ca.crt"))
    context.load_cert_chain(folder / f"{who}.tls.crt", folder / f"{who}.tls.key")
    return context


def _handshake(folder: Path, server: object, client: object, name: str) -> str:
    """The client's common name, or what is wrong."""
    serving = _context(folder, "server", dict(server), ssl.Purpose.CLIENT_AUTH)  # type: ignore[call-overload]
    serving.verify_mode = ssl.CERT_REQUIRED
    asking = _context(folder, "client", dict(client), ssl.Purpose.SERVER_AUTH)  # type: ignore[call-overload]
    left, right = socket.socketpair()
    heard: list[str] = []

    def accept() -> None:
        try:
            with serving.wrap_socket(left, server_side=True) as tls:
                peer = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
                heard.append(str(peer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
                tls.sendall(b"x")
        except OSError as error:
            heard.append(str(error).lower())
        finally:
            left.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        with asking.wrap_socket(right, server_hostname=name) as tls:
            tls.recv(1)
    except OSError as error:
        heard.insert(0, str(error).lower())
    finally:
        right.close()
        thread.join(10)
    return next((one for one in heard if "certificate" in one), heard[0])


class Secrets:
    """An API server that holds Secrets."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, str]] = {}

    async def get(self, _resource: Resource, name: str, _namespace: str = "") -> bytes | None:
        data = self.held.get(name)
        return None if data is None else json.dumps({"data": data}).encode()

    async def apply(self, _resource: Resource, body: Mapping[str, Any]) -> bytes:
        self.held[body["metadata"]["name"]] = dict(body["data"])
        return b"{}"

    def authorities(self, name: str) -> str:
        return base64.b64decode(self.held[name]["ca.crt"]).decode()


def test_nothing_is_told_of_a_certificate_that_nobody_needs_any_more() -> None:
    async def main() -> None:
        keeper = CertificateKeeper(cast("Client", Secrets()), "vtap-system")
        await keeper.ensure(COLLECTOR)
        assert COLLECTOR.secret.encode() in generate_latest(metrics.REGISTRY)
        keeper.forget(COLLECTOR.secret)
        assert COLLECTOR.secret.encode() not in generate_latest(metrics.REGISTRY)
        keeper.forget(COLLECTOR.secret)

    asyncio.run(main())


def test_a_new_authority_is_told_to_all_at_once() -> None:
    """Not at their next look, which may be half an hour away: meanwhile agents would refuse collectors."""

    async def main() -> None:
        secrets = Secrets()
        keeper = CertificateKeeper(cast("Client", secrets), "vtap-system")
        running = asyncio.create_task(keeper.run())
        await keeper.ensure(COLLECTOR)
        await _until(lambda: AGENT.secret in secrets.held)
        del secrets.held[AUTHORITY]
        await keeper.ensure(COLLECTOR)
        await _until(lambda: secrets.authorities(AGENT.secret) == secrets.authorities(COLLECTOR.secret))
        assert secrets.authorities(AGENT.secret) == secrets.authorities(AUTHORITY)
        running.cancel()

    async def _until(holds: Any) -> None:
        for _ in range(500):
            if holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not happen")

    asyncio.run(main())
