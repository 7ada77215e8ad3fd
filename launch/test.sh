#!/usr/bin/env bash
# Set up, then the checks and the tests. `--all` adds the heavy tests; other arguments go to pytest.
# Two processes, whatever the machine: most tests start workers of their own, or wait. Three take
# longer on two cores. The tests of a file stay together: they share servers and workers.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh"
select=(-m "not heavy")
if [ "${1:-}" = --all ]; then
    select=()
    shift
fi
ruff check .
ruff format --check .
mypy
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${select[@]}" "$@"
