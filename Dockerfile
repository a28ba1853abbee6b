# syntax=docker/dockerfile:1
# The repository with `llasa` on the path, for a CPU (default) or CUDA:
#   docker build --tag llasa:cpu .            docker build --build-arg DEVICE=cuda --tag llasa:cuda .
#   docker run --rm --volume "$PWD:/data" llasa:cpu synthesize --model results/checkpoints/mini-llasa \
#       --speaker ava "Call Anna at nine." -o /data/speech.wav
# CUDA needs NVIDIA's container toolkit: docker run --gpus all ..
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS python
# A compiler for pesq and for torch.compile; make for the targets. Debian's own versions are taken.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 llasa
ENV PATH=/opt/llasa/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN python -m venv /opt/llasa

FROM python AS torch-cpu
RUN pip install --no-cache-dir "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu

# The wheel of the package index brings CUDA's libraries; the driver is the host's.
FROM python AS torch-cuda
RUN pip install --no-cache-dir "torch==2.13.0"

# hadolint ignore=DL3006
FROM torch-${DEVICE}
WORKDIR /llasa
COPY pyproject.toml requirements-judges.txt README.md LICENSE ./
COPY llasa_core llasa_core
RUN pip install --no-cache-dir --editable ".[corpus,judges,lora]" \
    && pip install --no-cache-dir --no-deps --requirement requirements-judges.txt
COPY --chown=1000:1000 . .
RUN chown 1000:1000 /llasa
USER 1000
ENTRYPOINT ["llasa"]
CMD ["--help"]
