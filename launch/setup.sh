# Makes the environment that run.sh and test.sh use; sourced by both. Installs nothing when the
# environment already fits. Settings:
#   DIST_EMBED_DEVICE=cpu|cuda   which builds to install (default: cuda where nvidia-smi works)
#   DIST_EMBED_VENV=DIR          use this environment, which has dist_embed, and install nothing
#   PYTHON=COMMAND               the Python that makes .venv (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Whether an environment is whole: neither half made, nor of a Python that is another by now.
has_pip() { "$1/bin/python" -c "import pip" 2>/dev/null; }

install_into() { # VENV DEVICE
    local venv=$1 device=$2 log=$1/setup.log python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "dist_embed needs Python 3.10 or newer; $python is $("$python" -V 2>&1)" >&2
        exit 2
    }
    # Another device's builds install the same modules: never both in one environment.
    [ "$(cat "$venv/device" 2>/dev/null || echo "$device")" = "$device" ] || rm -rf "$venv"
    echo "setting up $venv for $device (once; a few minutes)"
    has_pip "$venv" || "$python" -m venv --clear "$venv"
    echo "$device" >"$venv/device"
    pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -q "$@" >>"$log" 2>&1; }
    # torch first: what follows must not bring another build of it. torchrec and fbgemm without
    # their own requirements: torchrec asks for the CUDA build of fbgemm by name.
    pip -c "launch/constraints/$device.txt" -c launch/constraints/common.txt torch numpy &&
        pip --no-deps -r "launch/constraints/$device.txt" &&
        pip -c "launch/constraints/$device.txt" -c launch/constraints/common.txt setuptools &&
        pip -c "launch/constraints/$device.txt" -c launch/constraints/common.txt \
            --no-build-isolation -e ".[dev]" || {
        tail -n 20 "$log" >&2
        echo "setting up failed; the whole log: $log" >&2
        exit 1
    }
}

if [ -n "${DIST_EMBED_VENV:-}" ]; then
    venv=$DIST_EMBED_VENV
    [ -x "$venv/bin/dist-embed" ] || {
        echo "DIST_EMBED_VENV=$venv: no bin/dist-embed there" >&2
        exit 2
    }
    export PATH="$venv/bin:$PATH"
elif [ -n "${RAY_JOB_CONFIG_JSON_ENV_VAR:-}" ] && command -v dist-embed >/dev/null; then
    : # a job on a Ray cluster whose own environment has dist_embed: workers run in that one
else
    device=${DIST_EMBED_DEVICE:-$(nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)}
    case $device in
    cpu | cuda) ;;
    *)
        echo "DIST_EMBED_DEVICE=$device is not allowed: cpu or cuda" >&2
        exit 2
        ;;
    esac
    venv=$PWD/.venv
    # The stamp names everything that decides what is installed, and where the project lies.
    stamp=$(cat pyproject.toml launch/constraints/common.txt "launch/constraints/$device.txt" launch/setup.sh |
        sha256sum)
    stamp="$device $PWD ${stamp%% *}"
    fits() { [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && has_pip "$venv"; }
    if ! fits; then
        # Two first runs at once: the second one waits, and finds it done.
        if command -v flock >/dev/null; then exec 9<. && flock 9; fi
        if ! fits; then
            install_into "$venv" "$device"
            echo "$stamp" >"$venv/stamp"
        fi
        exec 9<&-
    fi
    export PATH="$venv/bin:$PATH"
fi
