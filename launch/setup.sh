# Makes the environment that run.sh and test.sh use; sourced by both. Installs nothing when the
# environment already fits. Settings:
#   DIST_EMBED_DEVICE=cpu|cuda   which builds to install (default: cuda where nvidia-smi works)
#   DIST_EMBED_VENV=DIR          an environment to make or use (default: .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=${DIST_EMBED_DEVICE:-$(nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)}
case $device in
cpu | cuda) ;;
*)
    echo "DIST_EMBED_DEVICE=$device is not allowed: cpu or cuda" >&2
    exit 2
    ;;
esac

venv=${DIST_EMBED_VENV:-$PWD/.venv}
# The stamp names everything that decides what is installed, and where the project lies.
stamp=$(cat pyproject.toml constraints/common.txt "constraints/$device.txt" launch/setup.sh | sha256sum)
stamp="$device $PWD ${stamp%% *}"

if [ "$(cat "$venv/dist_embed.stamp" 2>/dev/null)" != "$stamp" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "dist_embed needs Python 3.10 or newer; $python is $("$python" -V 2>&1)" >&2
        exit 2
    }
    echo "setting up $venv for $device (once; a few minutes)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    log=$venv/setup.log
    pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -q "$@" >>"$log" 2>&1; }
    {
        # torch first: what follows must not bring another build of it. torchrec and fbgemm
        # without their own requirements: torchrec asks for the CUDA build of fbgemm by name.
        pip -c "constraints/$device.txt" -c constraints/common.txt torch numpy &&
            pip --no-deps -r "constraints/$device.txt" &&
            pip -c "constraints/$device.txt" -r constraints/common.txt &&
            pip --no-deps --no-build-isolation -e .
    } || {
        tail -n 20 "$log" >&2
        echo "setting up failed; the whole log: $log" >&2
        exit 1
    }
    echo "$stamp" >"$venv/dist_embed.stamp"
fi
# Ray's workers and other children find the same environment.
export PATH="$venv/bin:$PATH"
