# Makes the environment that run.sh and test.sh use; sourced by both. Installs nothing when the
# environment already fits. Settings:
#   DIST_EMBED_DEVICE=cpu|cuda   which builds to install (default: cuda where nvidia-smi works)
#   DIST_EMBED_VENV=DIR          use this environment, which has dist_embed, and install nothing
#   PYTHON=COMMAND               the Python that makes the environment (default: python3)
# Each device has its own, .venv-cpu or .venv-cuda: machines that share this folder may differ. One
# that has been whole is never removed: another machine may be running from it.
set -euo pipefail
case ${DIST_EMBED_VENV:-/} in /*) ;; *) DIST_EMBED_VENV=$PWD/$DIST_EMBED_VENV ;; esac
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
lock_seconds=3600 # of waiting for another set-up

refuse() { # LINE
    echo "$1" >&2
    exit 2
}

# Not where its Python is gone, or another by now.
works() { "$venv/bin/python" -I -c "import pip" 2>/dev/null; }
fits() { [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && works; }

# Such as cpython-312.
kind_of() { "$1" -I -c 'import sys; print(sys.implementation.cache_tag)' 2>/dev/null; }

check_python() {
    [ -n "${PYTHON:-}" ] && [ -e "$venv/stamp" ] && works || return 0
    [ "$(kind_of "$PYTHON")" = "$(kind_of "$venv/bin/python")" ] ||
        refuse "PYTHON=$PYTHON is not the Python of $venv ($(kind_of "$venv/bin/python")): unset it,\
 or remove $venv to have it made anew"
}

# Two at once: the second one waits. A file, open for writing: NFS gives no other locks. Without
# the command, or where the file system has no locks, nobody waits.
lock() {
    local code=0
    exec 9>>.venv-lock
    flock -n 9 2>/dev/null || code=$?
    if [ $code = 1 ]; then
        echo "waiting for another set-up in $PWD" >&2
        flock -w $lock_seconds 9 ||
            refuse "the other set-up in $PWD has not ended within $lock_seconds s"
    fi
}

make_venv() {
    local log=$venv.log python=${PYTHON:-python3} found
    failed() {
        tail -n 20 "$log" >&2
        echo "setting up failed; the whole log: $log" >&2
        exit 1
    }
    if [ -e "$venv" ] && ! [ -e "$venv/stamp" ] && ! [ -e "$log" ]; then
        refuse "$venv was not made by launch/setup.sh: move it away, or name it in DIST_EMBED_VENV"
    fi
    # Without a stamp it is what an interrupted set-up has left; the command comes last in it.
    local whole=false
    if [ -e "$venv/stamp" ] || [ -x "$venv/bin/dist-embed" ]; then whole=true; fi
    if $whole && ! works; then
        refuse "$venv does not run on this machine: remove it if no other machine uses it, or name\
 another environment in DIST_EMBED_VENV"
    fi
    echo "setting up $venv (once; a few minutes; DIST_EMBED_DEVICE=cpu or cuda chooses)" >&2
    : >"$log"
    if $whole; then
        # Until all is done it is not what its stamp says, whatever becomes of the files meanwhile.
        # For which device it is, is read below.
        echo "$device being changed" >"$venv/stamp"
    else
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            refuse "dist_embed needs Python 3.10 or newer; $python is $("$python" -V 2>&1)"
        "$python" -m venv --clear "$venv" >>"$log" 2>&1 || failed
    fi
    # What an interrupted pip has left would be taken for installed; RECORD is what it writes last
    # (23.2.1, operations/install/wheel.py).
    for found in "$venv"/lib/python*/site-packages/*.dist-info; do
        [ -e "$found/RECORD" ] || rm -rf "$found"
    done
    # pip's settings may say `user = true`, which it refuses in an environment.
    pip() {
        PIP_USER=0 "$venv/bin/python" -m pip --disable-pip-version-check install -q "$@" \
            >>"$log" 2>&1
    }
    # torch first: what follows must not bring another build of it. torchrec and fbgemm without
    # their own requirements: torchrec asks for the CUDA build of fbgemm by name. What else it needs
    # comes behind them; of that the project itself names tqdm only, since the others ask for torch.
    pip -c "launch/constraints/$device.txt" -c launch/constraints/common.txt torch numpy &&
        pip --no-deps -r "launch/constraints/$device.txt" &&
        pip -c "launch/constraints/$device.txt" -c launch/constraints/common.txt setuptools \
            tensordict torchmetrics pyre-extensions &&
        pip -c "launch/constraints/$device.txt" -c launch/constraints/common.txt \
            --no-build-isolation -e ".[ray,plots,export,completion,dev]" || failed
    [ -x "$venv/bin/dist-embed" ] ||
        refuse "pip has not installed into $venv; its settings name another place: pip config list"
    echo "$stamp" >"$venv/stamp"
}

if [ -n "${DIST_EMBED_VENV:-}" ]; then
    venv=$DIST_EMBED_VENV
    [ -x "$venv/bin/dist-embed" ] || refuse "DIST_EMBED_VENV=$venv: no bin/dist-embed there"
    export PATH="$venv/bin:$PATH"
elif [ -n "${RAY_JOB_CONFIG_JSON_ENV_VAR:-}" ] && command -v dist-embed >/dev/null; then
    : # a job on a Ray cluster whose own environment has dist_embed: workers run in that one
else
    device=${DIST_EMBED_DEVICE:-$(nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)}
    case $device in
    cpu | cuda) ;;
    *) refuse "DIST_EMBED_DEVICE=$device is not allowed: cpu or cuda" ;;
    esac
    venv=$PWD/.venv-$device
    # What earlier versions have made for this device goes on being used.
    case $(cat .venv/stamp 2>/dev/null) in "$device "*) venv=$PWD/.venv ;; esac
    # The stamp names everything that decides what is installed, and where the project lies.
    stamp=$(cat pyproject.toml launch/constraints/common.txt "launch/constraints/$device.txt" launch/setup.sh |
        sha256sum)
    stamp="$device $PWD ${stamp%% *}"
    check_python
    if ! fits; then
        lock
        check_python
        fits || make_venv
        exec 9>&-
    fi
    export PATH="$venv/bin:$PATH"
fi
