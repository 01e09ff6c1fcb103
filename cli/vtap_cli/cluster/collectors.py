"""Which collector has a tap's packets, and the way to it: the API server's proxy for its Service.

The API server keeps the Authorization header for itself, so that the collector reads who asks from one of ours (docs/cluster.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from vtap_api.names import collector_name
from vtap_cli.cluster.api import Forbidden, NotFound, named, of_core, of_group, refusal
from vtap_cli.cluster.objects import Object, destination_of, identity, is_collector, name_of, own_address, service_of, target_of
from vtap_cli.cluster.session import Session
from vtap_cli.daemons import Daemon
from vtap_cli.errors import CliError


@dataclass(frozen=True, slots=True)
class Collector(Daemon):
    """A collector behind the API server's proxy. `service` is (namespace, name)."""

    service: tuple[str, str] = ("", "")

    def absent(self, why: str) -> CliError:
        """The way to the API server is gone."""
        return CliError(f"{self.name} cannot be reached through the API server ({why}); try again")

    def refused(self, path: str, status: int, body: bytes) -> CliError:
        """The collector's own sentence with the cure, or the API server's about the collector's Service."""
        try:
            said = json.loads(body)
            own = str(said["error"]) if "error" in said else ""
            message, reason = str(said.get("message", "")), str(said.get("reason", ""))
        except (ValueError, TypeError, AttributeError):
            return CliError(f"{self.name} answers {path} with {status}: {body[:200].decode(errors='replace').strip()}")
        return self._own_refusal(status, own) if own else self._without_collector(status, reason, message)

    def _own_refusal(self, status: int, sentence: str) -> CliError:
        if status == HTTPStatus.UNAUTHORIZED:
            return CliError(
                f"{self.name} does not know who asks ({sentence}); log in to the cluster again, or name with "
                "--service-account NAMESPACE/NAME a ServiceAccount that may read packets"
            )
        if status == HTTPStatus.NOT_FOUND:
            return NotFound(f"{self.name} refuses: {sentence}")
        return CliError(f"{self.name} refuses: {sentence}")

    def _without_collector(self, status: int, reason: str, message: str) -> CliError:
        namespace, name = self.service
        if status == HTTPStatus.NOT_FOUND:
            return CliError(
                f"there is no Service {namespace}/{name}: the collector has not been set up yet, or VirtualTap runs in another "
                "namespace (--vtap-namespace); see `kubectl get tapdestinations`"
            )
        if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT):
            return CliError(
                f"{self.name} does not answer ({message}); see `kubectl -n {namespace} get pods -l vtap.dev/component=collector`"
            )
        if status == HTTPStatus.FORBIDDEN:
            return CliError(
                f"not allowed: {message}; the chart opens this way to collectors (packets.viaAPIServer), or an admin allows you "
                f"`get` on services/proxy in namespace {namespace}"
            )
        return refusal(status, reason, message)


def collector_of(session: Session, destination: str) -> Collector:
    """The collector of a TapDestination. Raises CliError where that is none of ours, or may not be asked."""
    try:
        found = session.api.get(of_group("tapdestinations", "", destination))
    except NotFound as error:
        raise CliError(f"there is no TapDestination {destination!r}; `kubectl get tapdestinations` lists them") from error
    except Forbidden:
        found = assumed(session, destination)
    return collector_at(session, found)


def assumed(session: Session, destination: str) -> Object:
    """A TapDestination that may not be read, as it most likely is: a tenant may know the name alone."""
    url = f"https://{collector_name(destination)}.{session.vtap_namespace()}.svc"
    return {"metadata": {"name": destination}, "spec": {"collector": {}}, "status": {"collector": {"url": url}}}


def destinations_of(session: Session, taps: Sequence[Object]) -> Mapping[str, Object]:
    """All TapDestinations by name; where they may not be read, those of the taps as they most likely are. Raises CliError."""
    found, why = session.destinations()
    return {name: assumed(session, name) for name in map(destination_of, taps)} if why else found


def collector_at(session: Session, destination: Object) -> Collector:
    """The collector of a TapDestination that was read already. Raises CliError."""
    name = name_of(destination)
    if not is_collector(destination):
        raise CliError(
            f"TapDestination {name!r} sends to {target_of(destination)}, which is no collector of ours: read the packets there; "
            "`kubectl vtap keys` says which key is which pod"
        )
    if address := own_address(destination):
        raise CliError(
            f"the collector of TapDestination {name!r} runs at {address}, where no operator put it; "
            "read its packets there, with `vtap packets`"
        )
    service = service_of(destination)
    if service is None:
        raise CliError(
            f"the collector of TapDestination {name!r} has no address yet; see `kubectl describe tapdestination {name}`"
        )
    vtap_namespace = session.vtap_namespace([destination])
    headers: Mapping[str, str] = {"X-Vtap-Authorization": f"Bearer {session.token(vtap_namespace)}"}
    prefix = of_core("services", service[0]) + f"/https:{named(service[1])}:https/proxy"
    return Collector(f"the collector {service[1]}", session.api.server.socket, "", prefix, headers, service)


def collector_of_tap(session: Session, tap: tuple[str, str], destination: str = "") -> Collector:
    """The collector that has a tap's packets; of a tap that is gone, that of `destination`. Raises CliError."""
    if destination:
        return collector_of(session, destination)
    try:
        found = session.api.get(of_group("virtualtaps", *tap))
    except NotFound as error:
        raise CliError(
            f"there is no VirtualTap {'/'.join(tap)}; `kubectl vtap status -A` lists them, and --destination NAME finds the "
            "stored packets of one that is gone"
        ) from error
    return collector_of(session, destination_of(found))


def questions(
    session: Session, taps: Sequence[Object], destinations: Mapping[str, Object], *, everything: bool
) -> tuple[list[tuple[Collector, dict[str, str]]], list[str]]:
    """Whom to ask with which query: of all taps at once, or of one after another, as those must who may read some only.

    Beside it, sentences about collectors that can't be asked.
    """
    notes: list[str] = []
    collectors: dict[str, Collector] = {}
    wanted = set(destinations) if everything else {destination_of(tap) for tap in taps}
    for name in sorted(wanted & {name for name, item in destinations.items() if is_collector(item)}):
        try:
            collectors[name] = collector_at(session, destinations[name])
        except CliError as error:
            notes.append(str(error))
    if everything:
        return [(collector, {}) for collector in collectors.values()], notes
    named = ((collectors.get(destination_of(tap)), "/".join(identity(tap))) for tap in taps)
    return [(collector, {"tap": tap}) for collector, tap in named if collector], notes
