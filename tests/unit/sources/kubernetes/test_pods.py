"""Which network namespace is taken for which pod's."""

from __future__ import annotations

from typing import Any

from vtap_agent.sources.kubernetes.pods import MIRROR_ANNOTATION, PodRecord, pods_of, record_of

VICTIM = "0b2c7f0e-6d63-4f0e-9a53-1f2d3c4b5a69"
OWN = "9f0d1c2b-3a49-4857-8665-748392a1b0cf"
HASH = "5f3d2c1b0a99887766554433221100ff"


def record(name: str, uid: str, mirrors: str = "", namespace: str = "shop", **metadata: Any) -> PodRecord:
    annotations = {MIRROR_ANNOTATION: mirrors} if mirrors else {}
    found = record_of(
        {"metadata": {"name": name, "namespace": namespace, "uid": uid, "annotations": annotations, **metadata}, "spec": {}}
    )
    assert found is not None
    return found


def paths_of(*records: PodRecord) -> dict[str, str]:
    """By pod."""
    there = {uid: f"/proc/{uid}/ns/net" for uid in (VICTIM, OWN, HASH)}
    made = pods_of({f"{one.namespace}/{one.name}": one for one in records}, there)
    return {pod.ref.name: pod.netns for pod in made}


def test_a_static_pod_is_found_by_the_hash_that_kubelet_knows_it_by() -> None:
    assert paths_of(record("proxy-node", OWN, mirrors=HASH)) == {"proxy-node": f"/proc/{HASH}/ns/net"}


def test_an_annotation_does_not_make_a_pod_another_tenants() -> None:
    """Anybody may write it when making a pod, and with a finalizer the pod stays though kubelet deletes it."""
    impostor = record("impostor", OWN, mirrors=VICTIM, finalizers=["example.com/stay"])
    assert paths_of(impostor)["impostor"] == f"/proc/{OWN}/ns/net"
    assert paths_of(impostor, record("victim", VICTIM, namespace="bank"))["victim"] == f"/proc/{VICTIM}/ns/net"


def test_a_static_pod_that_two_claim_to_be_is_neithers() -> None:
    claims = (record("proxy-node", VICTIM, mirrors=HASH, namespace="kube-system"), record("impostor", OWN, mirrors=HASH))
    assert paths_of(*claims) == {"proxy-node": "", "impostor": ""}
