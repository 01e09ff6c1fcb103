"""Label selectors, as Kubernetes evaluates them."""

from vtap_api.selectors import matches

__all__ = ["matches"]
