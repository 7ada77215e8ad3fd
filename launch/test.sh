#!/usr/bin/env bash
# Set up, then the checks and the tests. Other arguments go to pytest.
#   --quick   lint, types and the unit tests alone
#   --all     the heavy tests too
# Two processes, whatever the machine: most tests start workers of their own, or wait. Three take
# longer on two cores. The tests of a file stay together: they share servers and workers.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh"
select=(-m "not heavy")
case ${1:-} in
--quick)
    select+=(tests/unit)
    shift
    ;;
--all)
    select=()
    shift
    ;;
esac
# Compiled tests are kept, also where the environment says not to (images of containers do): each of
# the two processes, and every Python that a test starts, would compile all that it imports.
unset PYTHONDONTWRITEBYTECODE
ruff check .
ruff format --check .
mypy
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${select[@]}" "$@"
