"""The contract on groups of OpenFlow buckets."""

from tests.contract.contract import Contract
from vtap_api.virtualtap import BackendName


class TestOvsGroup(Contract):
    backend = BackendName.OVS_GROUP
