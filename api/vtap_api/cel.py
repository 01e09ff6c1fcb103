"""Rules in CEL that the API server checks. Pure.

They use libraries that a new CRD may use from Kubernetes 1.31 on: durations, quantities, `isIP` and `cidr`
(https://kubernetes.io/docs/reference/using-api/cel/).
"""

from __future__ import annotations

from typing import Any

Rule = tuple[str, str] | tuple[str, str, str]
"""(expression, message), or (expression, message, path): the field that is wrong, such as ``.endPort``, below the one that has
the rule. With it the API server names the field that `vtap validate` names."""


def validations(*said: Rule) -> dict[str, Any]:
    """Schema extras that hold these rules; nothing for none."""
    return {"x-kubernetes-validations": [_validation(*one) for one in said]} if said else {}


def _validation(rule: str, message: str, path: str = "") -> dict[str, str]:
    return {"rule": rule, "message": message, **({"fieldPath": path} if path else {})}
