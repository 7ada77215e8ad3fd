#!/usr/bin/env bash
# Proves and measures dist_embed on one GPU, within 9 minutes: `launch/gpu.sh [STAGE…]`; `--help`
# names the stages and the settings. Installs nothing and needs no network.
#   PYTHON=COMMAND   a Python that has what the project imports (default: the active python3)
set -euo pipefail
project=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/..
export PYTHONPATH="$(cd "$project" && pwd)${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m dist_embed.bench.gpu "$@"
