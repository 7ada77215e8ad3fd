#!/usr/bin/env bash
# Set up, then run dist-embed: without arguments the quickstart, else `dist-embed ARGS…`.
caller=$PWD
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh"
if [ $# -eq 0 ]; then
    set -- quickstart configs/quickstart.yaml
else
    cd "$caller" # paths in ARGS are the caller's
fi
exec dist-embed "$@"
