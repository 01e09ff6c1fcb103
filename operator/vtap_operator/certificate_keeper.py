"""Keeps the Secrets of our certificate authority and of what it issues."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from vtap_operator import certificates, metrics
from vtap_operator.certificates import Data, Leaf, agent_leaf
from vtap_operator.client import Client
from vtap_operator.errors import ApiError
from vtap_operator.keeping import now
from vtap_operator.resources import SECRETS
from vtap_operator.wire import Wire

log = logging.getLogger(__name__)

AUTHORITY = "vtap-ca"
LOOK_EVERY = 1800.0
"""Seconds; a certificate that is due has a third of its life left."""
RETRY_AFTER = 10.0
LABELS = {"app.kubernetes.io/name": "vtap", "app.kubernetes.io/managed-by": "vtap-operator"}


class _Secret(Wire, frozen=True):
    data: dict[str, str] | None = None


class CertificateKeeper:
    """`enabled` is False where somebody else, such as cert-manager, makes all Secrets."""

    def __init__(self, client: Client, namespace: str, *, enabled: bool = True) -> None:
        self._client = client
        self._namespace = namespace
        self._enabled = enabled
        self._leaves: dict[str, tuple[Leaf, Mapping[str, Any] | None]] = {}
        self._lock = asyncio.Lock()
        self._renewed = asyncio.Event()
        self.secrets = msgspec.json.Decoder(_Secret)

    async def ensure(self, leaf: Leaf, owner: Mapping[str, Any] | None = None) -> None:
        """Its Secret holds a certificate that is good for a while; looked after from now on. Raises ApiError."""
        if not self._enabled:
            return
        self._leaves[leaf.secret] = (leaf, owner)
        async with self._lock:
            await self._ensure(leaf, owner, await self._authority())

    async def run(self) -> None:
        """Until cancelled."""
        if not self._enabled:
            return
        self._leaves.setdefault(agent_leaf().secret, (agent_leaf(), None))
        while True:
            self._renewed.clear()
            pause = LOOK_EVERY if await self._look_after_all() else RETRY_AFTER
            # All others have to know a new authority soon: what it issues is refused by whoever does not.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._renewed.wait(), pause)

    async def _look_after_all(self) -> bool:
        try:
            async with self._lock:
                ca = await self._authority()
                for leaf, owner in list(self._leaves.values()):
                    if leaf.secret in self._leaves:
                        await self._ensure(leaf, owner, ca)
        except ApiError as error:
            metrics.ERRORS.labels("certificates").inc()
            log.warning("certificates cannot be looked after: %s; trying again", error)
            return False
        return True

    def forget(self, secret: str) -> None:
        """Nobody needs it any more."""
        if self._leaves.pop(secret, None) is not None:
            with contextlib.suppress(KeyError):  # It may never have been issued.
                metrics.CERTIFICATE_EXPIRY.remove(secret)

    async def _authority(self) -> Data:
        held = await self._read(AUTHORITY)
        wanted = certificates.authority(held, now())
        if wanted != held:
            await self._write(AUTHORITY, wanted, None)
            self._renewed.set()
            log.info("the certificate authority in Secret %s was renewed", AUTHORITY)
        self._expires(AUTHORITY, wanted)
        return wanted

    async def _ensure(self, leaf: Leaf, owner: Mapping[str, Any] | None, ca: Data) -> None:
        held = await self._read(leaf.secret)
        wanted = certificates.issued(leaf, held, ca, now())
        if wanted != held:
            await self._write(leaf.secret, wanted, owner)
            log.info("the certificate in Secret %s was issued", leaf.secret)
        if leaf.secret in self._leaves:  # else it was forgotten meanwhile
            self._expires(leaf.secret, wanted)

    @staticmethod
    def _expires(secret: str, data: Data) -> None:
        at = certificates.expiry(data)
        if at is not None:
            metrics.CERTIFICATE_EXPIRY.labels(secret).set(at.timestamp())

    async def _read(self, name: str) -> Data | None:
        body = await self._client.get(SECRETS, name, self._namespace)
        if body is None:
            return None
        data = self.secrets.decode(body).data or {}
        try:
            return {key: base64.b64decode(value) for key, value in data.items()}
        except binascii.Error:
            return None

    async def _write(self, name: str, data: Data, owner: Mapping[str, Any] | None) -> None:
        metadata: dict[str, Any] = {"name": name, "namespace": self._namespace, "labels": LABELS}
        if owner is not None:
            metadata["ownerReferences"] = [dict(owner)]
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}
        await self._client.apply(SECRETS, body)
