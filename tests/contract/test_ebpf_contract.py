"""The contract on eBPF at the pods' own devices."""

from tests.contract.contract import Contract
from vtap_api.virtualtap import BackendName


class TestEbpf(Contract):
    backend = BackendName.EBPF
