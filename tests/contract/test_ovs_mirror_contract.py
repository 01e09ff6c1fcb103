"""The contract on mirrors of Open vSwitch."""

from tests.contract.contract import Contract
from vtap_api.virtualtap import BackendName


class TestOvsMirror(Contract):
    backend = BackendName.OVS_MIRROR
