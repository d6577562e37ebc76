# The image of all pods: Ray, DeepSpeed and this project in one virtual environment, run by user 1000.
#   docker build -t registry.example.com/gangway:0.1.0-ray2.60.0 .
# torch is the build of the index that pip asks: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# gives a smaller one without CUDA.

FROM python:3.11.14-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL}
# Some packages are built from source. No versions: Debian's archive keeps only the newest of each.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/install.sh scripts/install.sh
COPY serving serving
COPY cluster cluster
RUN scripts/install.sh /opt/gangway

FROM python:3.11.14-slim-bookworm
# The compiler builds the CPU kernels for the processor that the pod lands on, in seconds, and DeepSpeed's when they are used.
# The quotes are single so that the shell that reads the file expands PATH, not this one.
# hadolint ignore=DL3008,SC2016
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ procps \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 gangway \
    && useradd --uid 1000 --gid 1000 --create-home gangway \
    && mkdir --parents /var/cache/gangway \
    && chown gangway:gangway /var/cache/gangway \
    && echo 'export PATH=/opt/gangway/bin:$PATH' > /etc/profile.d/gangway.sh
COPY --from=build /opt/gangway /opt/gangway
# KubeRay starts Ray through bash, which as a login shell takes its path from /etc/profile.d.
ENV PATH=/opt/gangway/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/gangway
EXPOSE 8000
ENTRYPOINT ["gangway"]
CMD ["--help"]
