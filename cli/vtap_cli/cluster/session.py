"""One run of a command against a cluster: the way there, the namespace that is meant, and what was found out on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vtap_cli.cluster import kubectl
from vtap_cli.cluster.api import Api, ApiServer, Forbidden, of_core, of_group
from vtap_cli.cluster.kubectl import Config, Place
from vtap_cli.cluster.objects import Object, identity, name_of, service_of
from vtap_cli.errors import CliError

DEFAULT_NAMESPACE = "vtap-system"
READER = "vtap-reader"
"""The ServiceAccount, in our namespace, whose tokens stand for those who have none of their own."""
AUDIENCE = "vtap-collector"
TOKEN_SECONDS = 3600
"""How long such a token lives. A live stream ends with it, as the collector has it judged again and again."""


def _no_tokens() -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Session:
    """`place` is what the command line says; `config` what the kubeconfig says."""

    place: Place
    config: Config
    api: Api
    _tokens: list[str] = field(default_factory=_no_tokens)

    @property
    def namespace(self) -> str:
        """Where a name without namespace belongs; empty for all namespaces."""
        return "" if self.place.all_namespaces else self.place.namespace or self.config.namespace

    def tap_name(self, text: str) -> tuple[str, str]:
        """``NAME`` or ``NAMESPACE/NAME`` as (namespace, name). Raises CliError."""
        namespace, slash, name = text.rpartition("/")
        if slash:
            return namespace, name
        return self.place.namespace or self.config.namespace, name

    def taps(self, name: str = "") -> list[Object]:
        """VirtualTaps that the command line means: all of the namespace, or the one named. Raises CliError."""
        if name:
            return [self.api.get(of_group("virtualtaps", *self.tap_name(name)))]
        return sorted(self.api.list(of_group("virtualtaps", self.namespace)), key=identity)

    def destinations(self) -> tuple[dict[str, Object], str]:
        """By name; and why there is none where they may not be read."""
        try:
            return {name_of(item): item for item in self.api.list(of_group("tapdestinations"))}, ""
        except Forbidden as error:
            return {}, str(error)

    def vtap_namespace(self, destinations: Iterable[Object] = ()) -> str:
        """Where VirtualTap itself runs: as the command line says, as a destination's collector shows, else the usual one."""
        found = (service_of(item) for item in destinations)
        return self.place.vtap_namespace or next((service[0] for service in found if service), DEFAULT_NAMESPACE)

    def token(self, vtap_namespace: str) -> str:
        """The token that shows a collector who asks: the kubeconfig's own, or one that is made for it. Raises CliError."""
        if not self._tokens:
            own = "" if self.place.service_account else kubectl.own_token(self.place, self.config)
            self._tokens.append(own or self._made_token(vtap_namespace))
        return self._tokens[0]

    def _made_token(self, vtap_namespace: str) -> str:
        account = self.place.service_account or f"{vtap_namespace}/{READER}"
        namespace, slash, name = account.partition("/")
        if not slash:
            namespace, name = vtap_namespace, account
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [AUDIENCE], "expirationSeconds": TOKEN_SECONDS},
        }
        path = of_core("serviceaccounts", namespace, name) + "/token"
        try:
            return str(self.api.create(path, request)["status"]["token"])
        except CliError as error:
            why = "" if self.place.service_account else "the kubeconfig has no token that shows the collector who you are, and "
            raise CliError(
                f"{why}no token for ServiceAccount {namespace}/{name} is to be had ({error}); "
                "log in with a token, or name with --service-account NAMESPACE/NAME one that may read the tap's packets"
            ) from error
        except (LookupError, TypeError) as error:
            raise CliError(f"the API server answers the request for a token of {account} with something unexpected") from error


@contextmanager
def opened(place: Place) -> Iterator[Session]:
    """The way to the cluster, for as long as the command takes. Raises CliError."""
    config = kubectl.read_config(place)
    with kubectl.proxy(place, config) as socket:
        server = ApiServer("the API server", socket, "", context=config.context, server=config.server)
        yield Session(place, config, Api(server))
