# CPU by default; for CUDA: docker build --build-arg TORCH="torch" -t agentrl:cuda .
#   TORCH  what pip installs as torch first: a CPU build where your index has one ("torch==2.13.0+cpu"), the CUDA build otherwise
#   INDEX  an extra package index for that torch, where it is not on the default one
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH=torch
ARG INDEX=""
ARG EXTRAS=train,textworld,gym,plot
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# TextWorld compiles its interpreter where no wheel fits this platform
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/agentrl
RUN pip install ${INDEX:+--extra-index-url "$INDEX"} "${TORCH}"
COPY . .
RUN pip install ".[${EXTRAS}]" && agentrl doctor

# an unprivileged user; runs and generated games live in its home
RUN useradd --create-home agent
USER agent
WORKDIR /home/agent
COPY --chown=agent recipes recipes
ENTRYPOINT ["agentrl"]
CMD ["train", "recipes/textworld_demo.py"]
