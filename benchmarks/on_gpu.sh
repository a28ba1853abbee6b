#!/usr/bin/env bash
# All that only a GPU can tell, in at most nine minutes and without a network.
# PYTHON: an interpreter with this repository's requirements; WHEELS: a folder to install them from.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m venv .venv-gpu
  python=.venv-gpu/bin/python
  "$python" -m pip install --quiet --no-index --find-links "$WHEELS" -e .
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 540 "$python" benchmarks/on_gpu.py "$@"
