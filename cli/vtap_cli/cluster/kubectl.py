"""kubectl as our way to the API server: it reads the kubeconfig, authenticates and speaks TLS; we speak HTTP to its proxy.

`kubectl proxy` serves a Unix socket in a directory that only this user can enter, and ends with us (decision 0091).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vtap_cli.errors import CliError

START_TIMEOUT = 20.0
"""Seconds that `kubectl proxy` may take to listen."""
PLUGIN_TIMEOUT = 300.0
"""Seconds that a credential plugin may take: some of them wait for a person at a browser."""
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Which cluster and what of it, as the command line says; empty where it says nothing."""

    context: str = ""
    kubeconfig: str = ""
    namespace: str = ""
    all_namespaces: bool = False
    vtap_namespace: str = ""
    service_account: str = ""

    def flags(self) -> list[str]:
        """The same for kubectl."""
        given = {"--context": self.context, "--kubeconfig": self.kubeconfig}
        return [f"{name}={value}" for name, value in given.items() if value]


@dataclass(frozen=True, slots=True)
class Config:
    """What the kubeconfig says of the chosen context. `user` is its users[].user, with everything secret in it."""

    context: str
    namespace: str
    cluster: Mapping[str, Any]
    user: Mapping[str, Any]

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self.cluster.get("server", ""))

    @property
    def interactive(self) -> bool:
        """Whether credentials can't be had without a terminal."""
        return (self.user.get("exec") or {}).get("interactiveMode") == "Always"


def read_config(place: Place) -> Config:
    """The kubeconfig's chosen context; inside a pod without kubeconfig, the pod's own ServiceAccount. Raises CliError."""
    said = _run([*place.flags(), "config", "view", "--minify", "--raw", "-o", "json"])
    if said.returncode != 0:
        if not place.flags() and "KUBECONFIG" not in os.environ and (IN_CLUSTER / "token").exists():
            return _in_cluster()
        raise CliError(f"there is no cluster to ask ({_last_line(said.stderr)}); {_cure(place)}")
    try:
        document = json.loads(said.stdout)
        context = document["contexts"][0]
        users = document.get("users") or [{}]
        return Config(
            str(context["name"]),
            str(context["context"].get("namespace") or "default"),
            document["clusters"][0]["cluster"],
            users[0].get("user") or {},
        )
    except (ValueError, LookupError, TypeError) as error:
        raise CliError("the kubeconfig names no cluster; see `kubectl config get-contexts`") from error


def _cure(place: Place) -> str:
    if place.context:
        return "`kubectl config get-contexts` lists what --context may name"
    return "point KUBECONFIG or --kubeconfig at a kubeconfig that has a current context"


def _in_cluster() -> Config:
    namespace = (IN_CLUSTER / "namespace").read_text().strip() or "default"
    return Config("in-cluster", namespace, {"server": "https://kubernetes.default.svc"}, {"tokenFile": str(IN_CLUSTER / "token")})


@contextmanager
def proxy(place: Place, config: Config) -> Iterator[Path]:
    """A Unix socket behind which the API server is, authenticated as the kubeconfig's user. Raises CliError."""
    with tempfile.TemporaryDirectory(prefix="vtap-") as directory, (Path(directory) / "log").open("w+b") as log:
        socket = Path(directory) / "api.sock"
        command = ["kubectl", *place.flags(), "proxy", f"--unix-socket={socket}"]
        # An interrupt is for us to act on, with the way to the API server still open: hence a session of its own.
        apart = not config.interactive
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if apart else None,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=apart,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise _no_kubectl(error) from error
        try:
            _await_start(process, log)
            yield socket
        finally:
            _stop(process, apart=apart)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _await_start(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    assert process.stdout is not None
    said, until = b"", time.monotonic() + START_TIMEOUT
    while b"Starting to serve" not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not chunk:
            log.seek(0)
            why = _last_line(log.read().decode(errors="replace")) or f"it said nothing for {START_TIMEOUT:.0f} s"
            raise CliError(f"`kubectl proxy` does not start ({why}); try it by hand")
        said += chunk


def _stop(process: subprocess.Popen[bytes], *, apart: bool) -> None:
    """At once: it holds nothing that would have to be put away, and on SIGTERM takes its time."""
    if apart:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["kubectl", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise _no_kubectl(error) from error


def _no_kubectl(error: OSError) -> CliError:
    return CliError(f"kubectl cannot be run ({error.strerror}), and it is our way to the cluster; install it and put it on PATH")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""


def own_token(place: Place, config: Config) -> str:
    """The bearer token that the kubeconfig's user has; empty where it has none, as with a client certificate. Raises CliError."""
    user = config.user
    if user.get("token"):
        return str(user["token"])
    if user.get("tokenFile"):
        return _token_in(_beside_kubeconfig(place, str(user["tokenFile"])))
    if user.get("exec"):
        return _from_plugin(user["exec"], place, config)
    if user.get("auth-provider"):
        # kubectl has renewed it by now, where it was out of date, and has written it into the kubeconfig.
        renewed = read_config(place).user.get("auth-provider") or {}
        return str((renewed.get("config") or {}).get("id-token") or "")
    return ""


def _beside_kubeconfig(place: Place, path: str) -> Path:
    """Relative paths in a kubeconfig start where it lies."""
    named = place.kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    candidates = [Path(file).parent / path for file in named.split(os.pathsep) if file]
    return next((candidate for candidate in candidates if candidate.exists()), Path(path))


def _token_in(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError) as error:
        raise CliError(f"the kubeconfig's tokenFile {path} cannot be read ({error})") from error


def _from_plugin(plugin: Mapping[str, Any], place: Place, config: Config) -> str:
    """Run a credential plugin as client-go does (client.authentication.k8s.io). Raises CliError."""
    program = str(plugin.get("command", ""))
    if os.sep in program:
        program = str(_beside_kubeconfig(place, program).absolute())
    command = [program, *map(str, plugin.get("args") or ())]
    extra = {str(item["name"]): str(item["value"]) for item in plugin.get("env") or ()}
    never = plugin.get("interactiveMode") == "Never" or not sys.stdin.isatty()
    spec: dict[str, Any] = {"interactive": not never}
    if plugin.get("provideClusterInfo"):
        spec["cluster"] = _cluster_info(config.cluster)
    request = {"apiVersion": plugin.get("apiVersion"), "kind": "ExecCredential", "spec": spec}
    try:
        made = subprocess.run(
            command,
            stdin=subprocess.DEVNULL if never else None,
            stdout=subprocess.PIPE,
            env={**os.environ, **extra, "KUBERNETES_EXEC_INFO": json.dumps(request)},
            timeout=PLUGIN_TIMEOUT,
            check=True,
        )
        status = json.loads(made.stdout)["status"]
    except (OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError) as error:
        raise CliError(f"the kubeconfig's credential plugin {command[0]!r} gives no credentials ({error})") from error
    return str(status.get("token") or "")


def _cluster_info(cluster: Mapping[str, Any]) -> dict[str, Any]:
    known = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
    info = {name: cluster[name] for name in known if name in cluster}
    for extension in cluster.get("extensions") or ():
        if extension.get("name") == "client.authentication.k8s.io/exec":
            info["config"] = extension.get("extension")
    return info
