"""The destination that taps use unless they name another is made at start."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from vtap_operator import operator as module
from vtap_operator.client import Client
from vtap_operator.errors import ApiError
from vtap_operator.operator import Operator, Settings
from vtap_operator.resources import Resource


class Api:
    """Refuses what its admission policy refuses, until that is changed."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.made: list[str] = []

    async def create(self, _resource: Resource, body: Mapping[str, Any]) -> bool:
        if self.refusals:
            self.refusals -= 1
            raise ApiError(403, "Forbidden", "an admission policy of the cluster wants a label")
        self.made.append(body["metadata"]["name"])
        return True


@pytest.mark.parametrize("refusals", [0, 2])
def test_a_refusal_is_waited_out_and_ends_nothing(refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_AGAIN_AFTER", 0.0)

    async def main() -> None:
        api = Api(refusals)
        made = Operator(cast("Client", api), Settings("vtap-system", default_destination={"collector": {}}))
        await made._make_default_destination()
        assert api.made == ["default"] and not api.refusals

    asyncio.run(main())
