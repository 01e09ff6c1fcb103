# syntax=docker/dockerfile:1
# The three images of VirtualTap, one target each: docker build --target operator|agent|collector .
#
# Only Debian's archive and PyPI are needed. Proxies: --build-arg http_proxy=…, https_proxy=…, no_proxy=…. Another package index:
# --build-arg PIP_INDEX_URL=… and UV_DEFAULT_INDEX=…. CAs of one's own: --secret id=ca,src=BUNDLE.pem,
# which stands in for the system's bundle while packages are fetched and stays out of the images.
# A release names its base by digest: --build-arg BASE=docker.io/library/debian@sha256:….
ARG BASE=docker.io/library/debian:bookworm-slim
ARG UV_VERSION=0.13.9

# --- what every image runs on
FROM ${BASE} AS runtime
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/apt /var/log/dpkg.log
ENV PATH=/opt/vtap/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# --- uv, and the dependencies' manifests
FROM runtime AS build
ARG UV_VERSION
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv ca-certificates gcc libc6-dev make
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet --no-cache-dir "uv==${UV_VERSION}"
ENV UV_PROJECT_ENVIRONMENT=/opt/vtap UV_PYTHON=/usr/bin/python3 UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1 UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY api/pyproject.toml api/
COPY agent/pyproject.toml agent/
COPY operator/pyproject.toml operator/
COPY collector/pyproject.toml collector/
COPY cli/pyproject.toml cli/
COPY lab/pyproject.toml lab/

# --- operator
FROM build AS operator-build
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/uv/bin/uv sync --frozen --no-dev --no-install-workspace --package vtap-operator
COPY README.md ./
COPY api api
COPY operator operator
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/uv/bin/uv sync --frozen --no-dev --no-editable --package vtap-operator

# --- agent, with its eBPF object: the image that runs needs no compiler
FROM build AS agent-build
RUN apt-get install -y --no-install-recommends clang llvm libbpf-dev linux-libc-dev
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/uv/bin/uv sync --frozen --no-dev --no-install-workspace --package vtap-agent
COPY README.md ./
COPY api api
COPY agent agent
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/uv/bin/uv sync --frozen --no-dev --no-editable --package vtap-agent
RUN VTAP_CACHE=/opt/vtap/bpf /opt/vtap/bin/python -m vtap_agent.pipeline.build

# --- collector, with its C core
FROM build AS collector-build
RUN apt-get install -y --no-install-recommends libpcap-dev
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/uv/bin/uv sync --frozen --no-dev --no-install-workspace --package vtap-collector
COPY README.md ./
COPY api api
COPY collector collector
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/uv/bin/uv sync --frozen --no-dev --no-editable --package vtap-collector
RUN make -C collector \
 && package=$(/opt/vtap/bin/python -c 'import vtap_collector; print(vtap_collector.__path__[0])') \
 && install -s -m 0644 collector/vtap_collector/libvtapcollector.so "$package/"

# --- what runs
FROM runtime AS operator
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="vtap-operator" \
      org.opencontainers.image.description="The operator of VirtualTap: validates taps, resolves peers, runs collectors" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY LICENSE /usr/share/doc/vtap/LICENSE
COPY --from=operator-build /opt/vtap /opt/vtap
# Whatever user id it runs under, libraries find a name for it.
ENV USER=vtap
USER 65532:65532
ENTRYPOINT ["/opt/vtap/bin/vtap-operator"]

FROM runtime AS agent
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="vtap-agent" \
      org.opencontainers.image.description="The node agent of VirtualTap: copies, picks and sends packets of tapped pods" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libbpf1 openvswitch-common \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/apt /var/log/dpkg.log
COPY LICENSE /usr/share/doc/vtap/LICENSE
COPY --from=agent-build /opt/vtap /opt/vtap
ENV VTAP_CACHE=/opt/vtap/bpf
USER 0:0
ENTRYPOINT ["/opt/vtap/bin/vtap-agent"]

FROM runtime AS collector
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="vtap-collector" \
      org.opencontainers.image.description="The collector of VirtualTap: receives, accounts for, stores and serves copies" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libpcap0.8 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/apt /var/log/dpkg.log
COPY LICENSE /usr/share/doc/vtap/LICENSE
COPY --from=collector-build /opt/vtap /opt/vtap
USER 65532:65532
ENTRYPOINT ["/opt/vtap/bin/vtap-collector"]
