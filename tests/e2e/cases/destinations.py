"""TapDestinations of the cases' own."""

from __future__ import annotations

from typing import Any


def collector_destination(name: str, *namespaces: str, **collector: object) -> dict[str, Any]:
    """A TapDestination with a small collector of the operator's, for taps of these namespaces."""
    return {
        "apiVersion": "vtap.dev/v1alpha1",
        "kind": "TapDestination",
        "metadata": {"name": name},
        "spec": {
            "collector": {"storage": {"type": "EmptyDir", "size": "256Mi"}, **collector},
            "allowedNamespaces": {
                "from": "Selector",
                "selector": {
                    "matchExpressions": [
                        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(namespaces)},
                    ]
                },
            },
        },
    }
