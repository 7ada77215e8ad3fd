"""A run as a job of Slurm: the script that is sent, and what becomes of it.

Each worker is a task of one ``srun``, with nothing between (docs/decisions/0042-jobs-of-slurm.md).
SIGTERM to ``srun`` itself kills its tasks at once, so the script's own trap has Slurm send them the
signal (Slurm 22.05.8).
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator

from dist_embed.cluster.stopping import stop_seconds
from dist_embed.config.paths import corpora, is_of_one_process, places, run_name
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.installed import own_version
from dist_embed.jobs.arrived import SENT_BY
from dist_embed.jobs.configuration import configuration
from dist_embed.jobs.job import Job, NoOutput, check_is_free
from dist_embed.jobs.settings import SlurmSection

# Slurm looks at its signals and limits once a minute or so: a limit of 60 s ended at 80, and a
# signal 30 s before it came 18 to 20 s before (Slurm 22.05.8).
TICK_SECONDS = 60
# Times that a job queues again while data are prepared: what is counted then is counted anew, so it
# may never be done. As many as Slurm by itself tries to begin a job (`max_batch_requeue`).
MOST_PREPARATIONS = 5
COMMAND_SECONDS = 60.0  # that a command of Slurm may take
# The script hands it on in one variable, of which Linux takes 128 KiB with its name.
_CONFIG_BYTES = 130_000
_COMMENT = "dist_embed"  # by which our jobs are known among others
_END_OF_CONFIG = "END_OF_CONFIGURATION"
# States in which a job has not begun, and those in which it runs, or will.
_WAITING = {
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}  # fmt: skip
_BEGUN = {"RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
_NOT_BEGUN = "00:00:00"
# Reasons for which a job waits for ever, unless the cluster is changed, or the job; the second also
# where nodes that it needs are down.
_NEVER_BEGINS = {"PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints"}
_LIVING = {*_WAITING, *_BEGUN, "COMPLETING"}

# Another environment that is on the PATH, as sbatch hands on the sender's, would be used unnoticed.
_SETUP = """{lines}
code=$?
if [ $code != 0 ]; then
    echo "cluster.submit.slurm.setup: its last line has ended with code $code" >&2
    exit 2
fi
"""
_BODY = r"""
asks=0
asked_at=0
pid=
prepared=
ask() {{ # SIGTERM: before the time limit, or by `dist-embed stop`
    asks=$((asks + 1))
    asked_at=$(date +%s)
    tell_step
}}
tell_step() {{
    local steps
    while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; do # its step may be only about to begin
        steps=$(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i | grep -E '\.[0-9]+$')
        [ -n "$steps" ] && scancel --signal=TERM $steps && return
        sleep 1
    done
}}
trap ask TERM
in_step() {{ # COMMAND...: bash serves a trap while it waits, not while a command runs
    local code again before
    before=0
    [ $asks = 0 ] || return 143
    "$@" &
    pid=$!
    [ $asks = 0 ] || tell_step # asked before it had a number
    before=$asks
    wait "$pid"
    code=$?
    while [ $asks != "$before" ]; do # that wait was broken off
        before=$asks
        wait "$pid"
        again=$?
        [ $again = 127 ] || code=$again # it had been waited for
    done
    pid=
    return $code
}}

{setup}set -u
if ! command -v dist-embed >/dev/null; then
    echo "there is no dist-embed on $(hostname): cluster.submit.slurm.setup makes it known" >&2
    exit 2
fi
unset RAY_ADDRESS # the sender's, which sbatch hands on
DIST_EMBED_CONFIG=$(cat <<'{end}'
{yaml}{end}
)
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Above the ports that Ray takes for itself, below those that Linux gives to whoever asks for any.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
export {sent_by}={version}
export DIST_EMBED_CONFIG MASTER_ADDR MASTER_PORT SLURM_EXPORT_ENV=ALL
prepare='exec dist-embed prepare /dev/stdin <<<"$DIST_EMBED_CONFIG"'
# What torchrun would say to a worker, and each task of the training is one. `exec`: a signal to the
# task is one to the worker.
worker='
export TORCHELASTIC_RUN_ID=slurm-$SLURM_JOB_ID RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE={per_node}
exec dist-embed train /dev/stdin <<<"$DIST_EMBED_CONFIG"'

is_preempted() {{ # since it began this time. To those Slurm signals the steps, not this script
    local shown began announced
    shown=$(SLURM_TIME_FORMAT=standard scontrol show job "$SLURM_JOB_ID")
    began=$(sed -n 's/.* StartTime=\([0-9][^ ]*\).*/\1/p' <<<"$shown")
    announced=$(sed -n 's/.* PreemptTime=\([0-9][^ ]*\).*/\1/p' <<<"$shown")
    [[ -n "$announced" && ! "$announced" < "$began" ]]
}}
limit_is_near() {{ # as this script was asked to save
    local end limit
    [ $asked_at -gt 0 ] || return
    end=$(SLURM_TIME_FORMAT=standard squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)
    if [ -z "$end" ]; then
        echo "not queued again: Slurm does not say when the job's time ends; the same submission" \
            "goes on" >&2
        return 1
    fi
    limit=$(date -d "$end" +%s 2>/dev/null || echo 0) # where it has none
    [ "$limit" -ge $asked_at ] && [ $((limit - asked_at)) -le {margin} ]
}}
queue_again() {{ # WHY
    echo "$1: the job queues again, and goes on from what is saved"
    scontrol requeue "$SLURM_JOB_ID"
}}
in_step srun --ntasks=1 --nodes=1 --cpus-per-task={node_cpus} bash -c "$prepare"
code=$?
if [ $code = 0 ]; then
    prepared=1
    in_step srun --cpus-per-task={cpus} --kill-on-bad-exit=1 --wait={margin} bash -c "$worker"
    code=$?
fi
if [ $code != 143 ]; then
    :
elif is_preempted; then
    queue_again "others take the nodes"
elif limit_is_near; then
    if [ $SECONDS -lt {margin} ]; then
        echo "not queued again: a job that is asked to save up to {margin} s before its limit" \
            "needs a limit of {least} s (cluster.submit.slurm.hours); it ran for $SECONDS s" >&2
    elif [ -z "$prepared" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -ge {preparations} ]; then
        echo "not queued again: {preparations} times it has, and the data are not prepared yet;" \
            "a longer limit (cluster.submit.slurm.hours)? The same submission goes on" >&2
    else
        queue_again "the time limit is near"
    fi
fi
exit $code
"""


def script(config: Config) -> str:
    """The script that ``sbatch`` gets: the resolved configuration, and what runs it.

    Raises UserError where the workers cannot be spread evenly over the nodes, the time is too short
    to save in, or the script cannot hold the configuration.
    """
    slurm, workers = config.cluster.submit.slurm, config.cluster.max_workers
    if workers % slurm.nodes:
        raise UserError(
            f"cluster.submit.slurm.nodes: {slurm.nodes} is not allowed with "
            f"cluster.num_workers={workers}: as many workers on each node"
        )
    if not config.run.uri.isprintable():
        raise UserError(f"run.uri: {config.run.uri!r} is not allowed under Slurm: in one line")
    for key, uri in [*places(config), *corpora(config)]:
        if is_of_one_process(uri):
            raise UserError(
                f"{key}: {uri!r} is not allowed under Slurm, whose tasks have no such place in "
                "common; give a URL (s3://…) or a path of a shared folder"
            )
    margin = int(stop_seconds(config)) + 2 * TICK_SECONDS
    if slurm.hours is not None and 3600 * slurm.hours < 2 * margin:
        raise UserError(
            f"cluster.submit.slurm.hours: {slurm.hours:g} is not allowed: a job is asked to save "
            f"up to {margin} s before its end (checkpoint.drain_seconds); at least "
            f"{math.ceil(2 * margin / 36) / 100:g}"
        )
    # The job's own tasks are all there is; one may be bound to its own cores, or to none.
    threads = config.cluster.threads_per_worker or slurm.cpus_per_worker
    yaml = configuration(
        config, target="Slurm", most_bytes=_CONFIG_BYTES, launcher="local",
        threads_per_worker=threads,
    )  # fmt: skip
    if _END_OF_CONFIG in yaml:
        raise UserError(f"a configuration with the text {_END_OF_CONFIG!r} cannot be sent to Slurm")
    per_node = workers // slurm.nodes
    lines = [f"#SBATCH {option}" for option in _options(config, slurm, per_node)]
    body = _BODY.format(
        sent_by=SENT_BY, version=own_version(), end=_END_OF_CONFIG, yaml=yaml,
        per_node=per_node, margin=margin,
        least=2 * margin, preparations=MOST_PREPARATIONS,
        cpus=slurm.cpus_per_worker, node_cpus=slurm.cpus_per_worker * per_node,
        setup=_SETUP.format(lines=slurm.setup.strip()) if slurm.setup.strip() else "",
    )  # fmt: skip
    return "#!/bin/bash\n" + "\n".join(lines) + "\n" + body


def _options(config: Config, slurm: SlurmSection, per_node: int) -> Iterator[str]:
    yield f"--job-name={run_name(config.run.uri)}"
    yield f"--comment={shlex.quote(f'{_COMMENT} {config.run.uri}')}"
    yield f"--nodes={slurm.nodes}"
    yield f"--ntasks-per-node={per_node}"
    yield f"--cpus-per-task={slurm.cpus_per_worker}"
    gpus = config.cluster.device == "cuda" if slurm.gpus is None else slurm.gpus
    if gpus:
        yield f"--gpus-per-node={per_node}"
    if slurm.partition is not None:
        yield f"--partition={slurm.partition}"
    if slurm.hours is not None:
        yield f"--time={math.ceil(60 * slurm.hours)}"
    yield f"--signal=B:TERM@{int(stop_seconds(config)) + TICK_SECONDS}"
    yield "--requeue"
    yield "--open-mode=append"  # what a job wrote before it was queued again stays
    yield from slurm.options


def submit(text: str, run_uri: str) -> str:
    """Send a script of that run; returns the job's number.

    Raises UserError where a job of this user that has not ended has the same run, and with what
    Slurm has against the script.
    """
    check_is_free(run_uri, jobs())
    said = _slurm("sbatch", "--parsable", f"--output={os.getcwd()}/dist_embed-%j.out", text=text)
    return said.strip().partition(";")[0]


def jobs() -> list[Job]:
    """Those of this user that `submit` has sent and Slurm still knows."""
    listed = _slurm("squeue", "--me", "--noheader", "--format=%A|%k").splitlines()
    ours = [line.partition("|") for line in listed]
    return [job(number) for number, _, comment in ours if comment.startswith(f"{_COMMENT} ")]


def job(name: str) -> Job:
    """One by its number. Raises UserError where Slurm does not know it, or not as ours."""
    if not name.isdigit():
        raise UserError(f"job: {name!r} is not allowed: a number, as `dist-embed jobs` shows")
    lines = [line.strip() for line in _slurm("scontrol", "show", "job", name).splitlines()]
    whole = {}  # of a line with one key the value may have blanks
    for line in lines:
        key, _, value = line.partition("=")
        whole[key] = value
    words: dict[str, str] = {}
    for word in " ".join(lines).split():
        key, _, value = word.partition("=")
        words.setdefault(key, value)  # those behind the comment may be the run's own
    comment = whole.get("Comment", "")
    if not comment.startswith(f"{_COMMENT} "):
        raise UserError(f"job {name} was not sent by `dist-embed submit`")
    code, _, signal = words["ExitCode"].partition(":")
    state = words["JobState"]
    is_over = state not in _LIVING
    reason = words.get("Reason", "None").replace("None", "")
    ended_badly = is_over and state != "COMPLETED"  # a job that was taken back has the code 0
    return Job(
        name=name,
        state=state,
        is_over=is_over,
        run_uri=comment.removeprefix(f"{_COMMENT} "),
        running_for=words["RunTime"],
        reason=f"{reason}: it may never begin as it was sent"
        if reason in _NEVER_BEGINS
        else reason,
        output=whole["StdOut"],
        exit_code=128 + int(signal) if int(signal) else int(code) or int(ended_badly),
    )


def stop(name: str) -> Job:
    """Ask a job to end: a run saves after its step; one that has not begun is taken back."""
    found = job(name)
    if found.state in _BEGUN:
        _slurm("scancel", "--batch", "--signal=TERM", name)
    elif found.state in _WAITING:
        _slurm("scancel", name)
    else:
        return found
    return job(name)


def said(job: Job, since: int) -> bytes:
    """What a job has written, from that byte on. Raises NoOutput where there is no such file."""
    try:
        with open(job.output, "rb") as file:
            file.seek(since)
            return file.read()
    except FileNotFoundError:
        if job.running_for == _NOT_BEGUN:
            return b""
        raise NoOutput(
            f"job {job.name} writes to {job.output}, which this machine does not have: look on the "
            f"node where it began (BatchHost of `scontrol show job {job.name}`), or send jobs from "
            "a folder that all share"
        ) from None


def _slurm(command: str, *arguments: str, text: str | None = None) -> str:
    if shutil.which(command) is None:
        raise UserError(
            f"{command} is not installed here: call this on a machine from which jobs are sent to "
            "Slurm; `submit --dry-run` prints the script without it"
        )
    try:
        done = subprocess.run(
            [command, *arguments], input=text, capture_output=True, text=True,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{command} has not answered within {COMMAND_SECONDS:.0f} s") from None
    if done.returncode != 0:
        # What it ended for, where it says so: the errors before are tries of its own.
        said = _behind("fatal: ", done.stderr) or _behind("error: ", done.stderr)
        said = said or done.stderr.strip()
        raise UserError(f"{command}: {said or f'exit code {done.returncode}'}")
    return done.stdout


def _behind(mark: str, text: str) -> str:
    return "; ".join(filter(None, (line.partition(mark)[2] for line in text.splitlines())))
