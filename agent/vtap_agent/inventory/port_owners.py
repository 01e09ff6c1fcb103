"""Which pod an OVS port belongs to, by what CNI plugins write into external_ids: for ports that no veth leads to (a representor
of an SR-IOV function, an internal port, vhost-user). Pure.

The pod's end of a vhost-user port or a ring cannot be looked at, and Open vSwitch does not know its MAC. So that has to stand in
attached-mac of Port or Interface, where libvirt writes it too (Open vSwitch's integration guide), beside one of these:

| plugin | table | external_ids |
|---|---|---|
| OVS-CNI | Port | contPodUid, contIface, contNetns, owner=ovs-cni.network.kubevirt.io |
| Antrea | Port | pod-name, pod-namespace, container-id, attached-mac, ip-address; antrea-type=container |
| OVN-Kubernetes | Interface | iface-id=NAMESPACE_POD, iface-id-ver=UID, sandbox, attached_mac; k8s.ovn.org/network of others |
| Kube-OVN | Interface | iface-id=POD.NAMESPACE, pod_name, pod_namespace, pod_netns, vendor=kube-ovn |
| anybody | Interface | pod-name, pod-namespace, attached-mac |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vtap_agent.plan.inventory_model import BridgePort, PodRef, Switch

Ids = Mapping[str, str]
DEFAULT_INTERFACE = "eth0"
"""What a pod's first network is attached to."""
LONGEST_NAME = 15
"""Characters of an interface's name (IFNAMSIZ - 1). A port may have more: userspace-CNI writes CONTAINER-INTERFACE."""
_OVN_NETWORK = "k8s.ovn.org/network"


@dataclass(frozen=True, slots=True)
class Owner:
    """What a port says of its pod; what it does not say is empty. `mac` is that of the pod's end."""

    uid: str = ""
    namespace: str = ""
    name: str = ""
    interface: str = ""
    mac: str = ""

    def is_of(self, pod: PodRef, interface: str, mac: str) -> bool:
        """Whether it means this interface of this pod: the UID decides where it is said, and so do interface and MAC."""
        same_pod = self.uid == pod.uid if self.uid else (self.namespace, self.name) == (pod.namespace, pod.name)
        if self.mac and self.mac != mac:
            return False
        return same_pod and (self.interface == interface if self.interface else bool(self.mac))


def owner_of(port: BridgePort) -> Owner | None:
    """None where no plugin that we know has written it."""
    for read in (_ovs_cni, _antrea, _kube_ovn, _ovn_kubernetes, _by_hand):
        found = read(port.external_ids, port.interface_ids)
        if found is not None:
            return found
    return None


def _ovs_cni(port: Ids, _interface: Ids) -> Owner | None:
    uid, interface = port.get("contPodUid", ""), port.get("contIface", "")
    return Owner(uid=uid, interface=interface) if uid and interface else None


def _by_hand(_port: Ids, interface: Ids) -> Owner | None:
    """As Antrea does, in the table where libvirt writes the MAC. userspace-CNI writes nothing of the kind."""
    return _antrea(interface, interface) if _mac(interface) else None


def _mac(ids: Ids) -> str:
    return (ids.get("attached-mac") or ids.get("attached_mac") or "").lower()


def _antrea(port: Ids, _interface: Ids) -> Owner | None:
    name, namespace = port.get("pod-name", ""), port.get("pod-namespace", "")
    if not name or not namespace:
        return None
    mac = port.get("attached-mac", "").lower()
    return Owner(namespace=namespace, name=name, mac=mac, interface="" if mac else DEFAULT_INTERFACE)


def _kube_ovn(_port: Ids, interface: Ids) -> Owner | None:
    """A second interface's port has ``iface-id=POD.NAMESPACE.PROVIDER``; which of the pod's it is, is not said."""
    name, namespace = interface.get("pod_name", ""), interface.get("pod_namespace", "")
    if interface.get("vendor") != "kube-ovn" or not name or not namespace:
        return None
    first = interface.get("iface-id") == f"{name}.{namespace}"
    return Owner(namespace=namespace, name=name, interface=DEFAULT_INTERFACE) if first else None


def _ovn_kubernetes(_port: Ids, interface: Ids) -> Owner | None:
    """A namespace holds no underscore, so that the first one ends it."""
    namespace, _, name = interface.get("iface-id", "").partition("_")
    if not name or "sandbox" not in interface:
        return None
    mac = interface.get("attached_mac", "").lower()
    second = _OVN_NETWORK in interface
    return Owner(
        uid=interface.get("iface-id-ver", ""),
        namespace="" if second else namespace,
        name="" if second else name,
        mac=mac,
        interface="" if mac or second else DEFAULT_INTERFACE,
    )


@dataclass(frozen=True, slots=True)
class Deviceless:
    """A port without a device that says whose it is and which MAC the pod's end has. `interface` is never empty."""

    owner: Owner
    port: BridgePort
    interface: str
    mac: str


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of all bridges, by their devices' names, and those that say whose they are."""

    by_name: Mapping[str, BridgePort]
    owned: tuple[tuple[Owner, BridgePort], ...]
    deviceless: tuple[Deviceless, ...] = ()

    def of(self, pod: PodRef, interface: str, mac: str, host_name: str) -> BridgePort | None:
        """The port of a pod's interface: its veth's other end, else one that says it is; None where no or several ports do."""
        if host_name:
            return self.by_name.get(host_name)
        claims = [port for owner, port in self.owned if owner.is_of(pod, interface, mac)]
        return claims[0] if len(claims) == 1 else None

    def deviceless_of(self, pod: PodRef) -> tuple[Deviceless, ...]:
        """The ports of a pod that no interface of it shows, by name."""
        return tuple(one for one in self.deviceless if one.owner.is_of(pod, one.interface, one.mac))


def ports_of(switch: Switch) -> Ports:
    """All ports of a switch."""
    ports = [port for bridge in switch.bridges for port in bridge.ports]
    owned = tuple(_owned(ports))
    deviceless = tuple(filter(None, (_deviceless(owner, port) for owner, port in owned)))
    return Ports({port.device or port.name: port for port in ports}, owned, deviceless)


def _deviceless(owner: Owner, port: BridgePort) -> Deviceless | None:
    mac = owner.mac or _mac(port.interface_ids) or _mac(port.external_ids)
    return Deviceless(owner, port, owner.interface or port.name[-LONGEST_NAME:], mac) if port.deviceless and mac else None


def _owned(ports: Iterable[BridgePort]) -> Iterable[tuple[Owner, BridgePort]]:
    for port in ports:
        owner = owner_of(port)
        if owner is not None:
            yield owner, port
