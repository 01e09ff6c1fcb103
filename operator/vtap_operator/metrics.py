"""The operator's own metrics. No label has as many values as there are taps, pods or nodes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

QUEUE_DEPTH = Gauge("vtap_operator_queue_depth", "Objects that wait to be handled.", ["queue"], registry=REGISTRY)
HANDLER_SECONDS = Histogram(
    "vtap_operator_handler_seconds",
    "Time to handle one object.",
    ["queue"],
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 2, 10),
    registry=REGISTRY,
)
ERRORS = Counter(
    "vtap_operator_errors_total", "Work that failed and is tried again, or is said in a status.", ["queue"], registry=REGISTRY
)
WATCH_AGE = Gauge(
    "vtap_operator_watch_age_seconds", "Time since the API server last sent anything on a watch.", ["resource"], registry=REGISTRY
)
WATCH_RESTARTS = Counter(
    "vtap_operator_watch_restarts_total", "Watches that had to list everything again.", ["resource"], registry=REGISTRY
)
REQUESTS = Counter(
    "vtap_operator_api_requests_total", "Requests to the API server.", ["verb", "resource", "code"], registry=REGISTRY
)
EVENTS_DROPPED = Counter(
    "vtap_operator_events_dropped_total", "Events not posted, as there were too many at once.", registry=REGISTRY
)
TAPS = Gauge("vtap_operator_taps", "VirtualTaps.", ["accepted"], registry=REGISTRY)
SELECTORS = Gauge("vtap_operator_peer_selectors", "Different peer selectors of all taps.", registry=REGISTRY)
ADDRESSES = Gauge(
    "vtap_operator_peer_addresses", "Addresses of pods and Services that peer selectors choose from.", registry=REGISTRY
)
PODS = Gauge("vtap_operator_pods", "Pods held to resolve peer selectors; 0 while no tap has one.", registry=REGISTRY)
FULL_RESOLVE = Gauge(
    "vtap_operator_full_resolve_seconds", "Time that resolving all peer selectors took when it was last done.", registry=REGISTRY
)
CERTIFICATE_EXPIRY = Gauge(
    "vtap_operator_certificate_expiry_timestamp_seconds", "When a certificate expires.", ["secret"], registry=REGISTRY
)
