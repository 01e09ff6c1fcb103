"""May the bearer of this token read packets of that tap? Asked of the API server: TokenReview, then SubjectAccessReview.

https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/ and
https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/subject-access-review-v1/
"""

from __future__ import annotations

import hashlib
import math
import os
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from vtap_collector.access import Recheck
from vtap_collector.announcements import TapName
from vtap_collector.errors import CollectorError, Refused

AUDIENCE = "vtap-collector"
"""A token that was made for us alone is of no use elsewhere, so it is asked for first."""
REMEMBERED_SECONDS = 10.0
REMEMBERED_ANSWERS = 4096
TIMEOUT = aiohttp.ClientTimeout(total=10)
MAX_TOKEN = 16 << 10
MAX_REVIEWS = 16
"""Requests about which the API server is asked at a time: whoever reaches the port can make up tokens without end."""
MAX_REVIEWS_OF_ONE = 8
"""Of these, those from one address. The API server's proxy is one, for all readers that come that way."""
STRANGERS_A_MINUTE = 300
"""Tokens that nobody knows, from one address, until its next are refused unseen for a while; those that were good go on."""
REMEMBERED_SOURCES = 1024
RETRY_AFTER = 1
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Json = Mapping[str, Any]


class ReviewApi(Protocol):
    """Posts an object to the API server and gives back what it made of it."""

    async def create(self, path: str, body: Json) -> Json: ...


class InClusterApi:
    """The API server as a pod reaches it. The token is read anew for each request, since the kubelet replaces it."""

    def __init__(self, url: str, token_file: Path, ca_file: Path) -> None:
        self._url = url
        self._token_file = token_file
        self._ca_file = ca_file

    @classmethod
    def from_environment(cls, account: Path = SERVICE_ACCOUNT) -> InClusterApi:
        """Raises CollectorError outside a cluster."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (account / "token").exists():
            raise CollectorError("--kubernetes works in a pod with a service account only; use --token-file elsewhere")
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", account / "token", account / "ca.crt")

    async def create(self, path: str, body: Json) -> Json:
        """Raises Refused with 503 where the API server does not answer as it should."""
        try:
            headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
            context = ssl.create_default_context(cafile=str(self._ca_file))
            async with (
                aiohttp.ClientSession(timeout=TIMEOUT, headers=headers) as session,
                session.post(self._url + path, json=body, ssl=context) as response,
            ):
                if response.status not in (200, 201):
                    raise Refused(
                        f"the API server does not let the collector ask who may read: {response.status} for {path}", 503
                    )
                return await response.json()
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Refused(
                f"the API server cannot be asked who may read ({error or type(error).__name__}); try again", 503
            ) from error


@dataclass(frozen=True, slots=True)
class _Answer:
    """`user` is whose token it is, None for nobody's."""

    until: float
    user: Json | None
    refusal: tuple[str, int] | None


class Reviewer:
    """Remembers what the API server said for REMEMBERED_SECONDS, so that a table that is refreshed costs it little."""

    def __init__(self, api: ReviewApi, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._answers: OrderedDict[tuple[bytes, str], _Answer] = OrderedDict()
        self._asking: Counter[str] = Counter()
        self._strangers: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def admit(self, token: str, tap: TapName | None, source: str) -> Recheck:
        """Raises Refused: 401 for a token that nobody knows, 403 for one that may not, 503 where nobody can say, 429 where
        `source`, the address that asks, asks too much.

        What it returns judges the user anew, not the token: tokens of a few minutes are common, and outliving one's token is
        no offence for a request that was made in time.
        """
        if len(token) > MAX_TOKEN:
            raise Refused("the bearer token is longer than any that Kubernetes makes", 401)
        asked = (hashlib.sha256(token.encode(errors="replace")).digest(), str(tap or ""))
        known = self._answers.get(asked)
        if known is None or known.until < self._clock():
            if known is None or known.user is None:
                self._check_strangers(source)
            known = await self._ask_in_turn(token, tap, source)
            self._remember(asked, known)
        if known.refusal is not None:
            raise Refused(*known.refusal)
        return partial(self._recheck, known.user or {}, tap)

    async def _ask_in_turn(self, token: str, tap: TapName | None, source: str) -> _Answer:
        """Raises Refused where too many are being judged."""
        if self._asking[source] >= MAX_REVIEWS_OF_ONE:
            raise Refused("too many requests from this address are being judged at a time; try again", 429, RETRY_AFTER)
        if self._asking.total() >= MAX_REVIEWS:
            raise Refused("too many requests are being judged at a time; try again", 503, RETRY_AFTER)
        self._asking[source] += 1
        try:
            answer = await self._ask(token, tap)
        finally:
            self._asking[source] -= 1
            if not self._asking[source]:
                del self._asking[source]
        if answer.user is None:
            self._note_stranger(source)
        return answer

    def _check_strangers(self, source: str) -> None:
        since, count = self._strangers.get(source, (self._clock(), 0))
        left = since + 60.0 - self._clock()
        if count >= STRANGERS_A_MINUTE and left > 0:
            raise Refused("this address has sent too many bearer tokens that nobody knows; try again later", 429, math.ceil(left))

    def _note_stranger(self, source: str) -> None:
        since, count = self._strangers.get(source, (self._clock(), 0))
        over = self._clock() - since >= 60.0
        self._strangers[source] = (self._clock(), 1) if over else (since, count + 1)
        self._strangers.move_to_end(source)
        while len(self._strangers) > REMEMBERED_SOURCES:
            self._strangers.popitem(last=False)

    async def _recheck(self, user: Json, tap: TapName | None) -> None:
        refusal = await self._may_not(user, tap)
        if refusal is not None:
            raise Refused(*refusal)

    def _remember(self, asked: tuple[bytes, str], answer: _Answer) -> None:
        self._answers[asked] = answer
        self._answers.move_to_end(asked)
        while len(self._answers) > REMEMBERED_ANSWERS:
            self._answers.popitem(last=False)

    async def _ask(self, token: str, tap: TapName | None) -> _Answer:
        until = self._clock() + REMEMBERED_SECONDS
        user = await self._who(token)
        if user is None:
            return _Answer(until, None, ("the API server does not know this bearer token, or it has expired; log in again", 401))
        return _Answer(until, user, await self._may_not(user, tap))

    async def _may_not(self, user: Json, tap: TapName | None) -> tuple[str, int] | None:
        """Why not, None for who may."""
        reviewed = await self._api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", access_review(user, tap))
        if reviewed.get("status", {}).get("allowed") is True:
            return None
        where = f"in namespace {tap.namespace}" if tap else "in all namespaces"
        return (
            f"{user.get('username', 'this user')} may not read packets {where}: ask its admin for `get` on "
            "virtualtaps/packets there, as ClusterRole vtap-packets grants it",
            403,
        )

    async def _who(self, token: str) -> Json | None:
        for audiences in ([AUDIENCE], []):
            review = token_review(token, audiences)
            status = (await self._api.create("/apis/authentication.k8s.io/v1/tokenreviews", review)).get("status", {})
            if status.get("authenticated") is True and _meant_for(audiences, status):
                return status.get("user", {})
        return None


def _meant_for(audiences: list[str], status: Json) -> bool:
    """An API server that does not know audiences answers without any: then the token is for the API server itself, as in a
    review that names none."""
    return not audiences or not status.get("audiences") or AUDIENCE in status["audiences"]


def token_review(token: str, audiences: list[str]) -> Json:
    """The body of a TokenReview."""
    spec: dict[str, Any] = {"token": token, **({"audiences": audiences} if audiences else {})}
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}


def access_review(user: Json, tap: TapName | None) -> Json:
    """The body of a SubjectAccessReview: `get virtualtaps/packets`, of `tap` or of every tap of the cluster."""
    attributes = {"group": "vtap.dev", "version": "v1alpha1", "resource": "virtualtaps", "subresource": "packets", "verb": "get"}
    if tap is not None:
        attributes |= {"namespace": tap.namespace, "name": tap.name}
    spec = {
        "user": user.get("username", ""),
        "uid": user.get("uid", ""),
        "groups": user.get("groups", []),
        "extra": user.get("extra", {}),
        "resourceAttributes": attributes,
    }
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
