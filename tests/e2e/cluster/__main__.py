"""`python -m tests.e2e.cluster build | up NAME | down NAME | load NAME IMAGE… | images NAME | join NAME`; see docs/e2e.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.cluster import upstream
from tests.e2e.cluster.cache import Cache, the_cache
from tests.e2e.cluster.kubectl import Kubectl
from tests.e2e.cluster.lifecycle import build, down, join_networks, load, up
from tests.e2e.cluster.product import product_images
from tests.e2e.cluster.progress import say
from vtap_lab.errors import LabError


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    started = time.monotonic()
    try:
        _perform(options, the_cache())
    except LabError as error:
        say(str(error))
        return 1
    say(f"{options.command}: done in {time.monotonic() - started:.1f} s")
    return 0


def _perform(options: argparse.Namespace, cache: Cache) -> None:
    if options.command == "down":
        down(cache, options.name)
        return
    if options.command == "up" and options.network == "upstream":
        upstream.require()
    built = build(cache)
    if options.command == "up":
        kubectl = up(built, options.name, options.network, options.kubeconfig)
        print(f"export KUBECONFIG={kubectl.kubeconfig} PATH={cache.bin}:$PATH")
    elif options.command == "load":
        load(built, options.name, *options.images)
    elif options.command == "images":
        images = product_images(built)
        load(built, options.name, *images.names)
        print("helm install vtap charts/vtap --namespace vtap-system --create-namespace", *images.helm_arguments)
    elif options.command == "join":
        join_networks(built.way, Kubectl(built.program("kubectl"), cache.kubeconfig(options.name)), options.network)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.cluster", description="Real Kubernetes with Open vSwitch in its nodes"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build or fetch everything that clusters need")
    creating = commands.add_parser("up", help="create a cluster")
    joining = commands.add_parser("join", help="repair a cluster's networks after a node was restarted")
    deleting = commands.add_parser("down", help="delete a cluster")
    loading = commands.add_parser("load", help="bring local images into a cluster's nodes")
    product = commands.add_parser("images", help="build our own images and bring them into a cluster's nodes")
    for command in (creating, joining, deleting, loading, product):
        command.add_argument("name", help="of the cluster")
    loading.add_argument("images", nargs="+", help="image in the store of docker or podman")
    creating.add_argument("--kubeconfig", type=Path, help="where to write a copy of the cache's")
    for command in (creating, joining):
        command.add_argument(
            "--network", choices=("local", "upstream"), default="local", help="who attaches pods to Open vSwitch"
        )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
