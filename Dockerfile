# The serving image: `augserve serve` and nothing else (no torch, no compiler, no pip).
#
# BASE is any Debian 12, Ubuntu 24.04 or newer. The default holds what onnxruntime-gpu asks for: CUDA 13 and cuDNN 9.
# On a base without CUDA the same image serves on the CPU.
ARG BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM ${BASE} AS build

# Versions of Debian packages are the base's business: a pinned one disappears from the archive with the next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# pip lives in an environment of its own, so that the one that is shipped never holds it.
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/augserve

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY augserve augserve
COPY export export
COPY models models
COPY native native
COPY service service
ENV PIP_CACHE_DIR=/var/cache/pip
# Without its native library the image would work, slower; here that is an error.
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/tools/bin/pip wheel --no-deps --config-settings=cmake.define.AUGSERVE_BUILD=ON --wheel-dir /dist . \
    && /opt/tools/bin/pip --python /opt/augserve/bin/python install --constraint constraints.txt /dist/*.whl


FROM ${BASE}

# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt/* /var/log/dpkg.log \
    && groupadd --gid 10001 augserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin augserve

COPY --from=build /opt/augserve /opt/augserve

# The address stands here and not in CMD, so that a command of one's own need not repeat it. ONNX Runtime's builds for
# Linux report models and runs to their maker from 1.29 on, unless told not to.
ENV PATH=/opt/augserve/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    AUGSERVE_HOST=0.0.0.0 \
    AUGSERVE_PORT=8000 \
    ORT_DISABLE_TELEMETRY=1

# Models are mounted here; nothing in the image writes to it.
WORKDIR /models
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# Asked without a proxy, whatever HTTP_PROXY says: an answer other than 200 raises, and python exits with 1.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"AUGSERVE_PORT\"]}/readyz', timeout=2)"]

# Exec form: augserve is PID 1 and gets SIGTERM itself.
ENTRYPOINT ["augserve"]
CMD ["serve", "/models/model.onnx"]

ARG VERSION=unversioned
ARG REVISION=unknown
LABEL org.opencontainers.image.title="augserve" \
      org.opencontainers.image.description="Serves ONNX networks whose normalization statistics each request chooses" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.ref.name="augserve"
