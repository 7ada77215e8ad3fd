"""The script that Slurm gets; `tests/integration/test_slurm.py` has a Slurm run it."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dist_embed.cli.main import main
from dist_embed.config.load import config_from_dict, load_config
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.jobs import slurm
from dist_embed.jobs.settings import TARGETS
from dist_embed.jobs.slurm import script


def config_of(
    uri: str = "/runs/one", slurm: dict[str, Any] | None = None, **cluster: Any
) -> Config:
    return config_from_dict({
        "run": {"uri": uri}, "data": {"synthetic": {}}, "train": {"max_steps": 9},
        "checkpoint": {"drain_seconds": 30.0},
        "cluster": {"num_workers": 4, "submit": {"slurm": slurm or {}}, **cluster},
    })  # fmt: skip


def options_of(config: Config) -> list[str]:
    lines = script(config).splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def test_the_defaults_ask_for_little() -> None:
    assert options_of(config_of()) == [
        "--job-name=one", "--comment='dist_embed /runs/one'", "--nodes=1", "--ntasks-per-node=4",
        "--cpus-per-task=1", "--signal=B:TERM@180", "--requeue", "--open-mode=append",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("slurm", "cluster", "wanted"),
    [
        ({"nodes": 2}, {}, ["--nodes=2", "--ntasks-per-node=2"]),
        ({"partition": "gpu"}, {}, ["--partition=gpu"]),
        ({"hours": 0.51}, {}, ["--time=31"]),
        ({"cpus_per_worker": 6}, {}, ["--cpus-per-task=6"]),
        ({}, {"device": "cuda"}, ["--gpus-per-node=4"]),
        ({"gpus": True, "nodes": 4}, {}, ["--gpus-per-node=1"]),
        ({"options": ["--account=lab"]}, {}, ["--account=lab"]),
    ],
)
def test_a_setting_is_an_option(
    slurm: dict[str, Any], cluster: dict[str, Any], wanted: list[str]
) -> None:
    options = options_of(config_of(slurm=slurm, **cluster))
    assert set(wanted) <= set(options)
    assert not set(wanted) <= set(options_of(config_of()))


def test_gpus_may_be_left_to_other_options() -> None:
    options = options_of(config_of(slurm={"gpus": False}, device="cuda"))
    assert not any("gpu" in option for option in options)


def test_a_name_with_blanks_is_one_word_in_slurms_listings() -> None:
    assert options_of(config_of("/runs/a JobState=FAILED"))[0] == "--job-name=a_JobState_FAILED"


def test_cores_reach_steps_and_workers() -> None:
    text = script(config_of(slurm={"cpus_per_worker": 3, "nodes": 2}))
    assert "srun --ntasks=1 --nodes=1 --cpus-per-task=6 " in text
    assert "srun --cpus-per-task=3 --kill-on-bad-exit=1 --wait=240 " in text
    assert "\n  threads_per_worker: 3\n" in text
    assert "\n  threads_per_worker: 5\n" in script(config_of(threads_per_worker=5))


def test_a_range_of_workers_is_its_most_where_none_come_and_go() -> None:
    options = options_of(config_of(slurm={"nodes": 2}, num_workers={"min": 2, "max": 6}))
    assert "--ntasks-per-node=3" in options


def test_lines_of_set_up_come_before_the_command_is_looked_for() -> None:
    text = script(config_of(slurm={"setup": "source /opt/env/bin/activate"}))
    lines = text.splitlines()
    activated = lines.index("source /opt/env/bin/activate")
    # They may use what is not set, and take their time.
    assert lines.index("trap ask TERM") < activated < lines.index("set -u")
    assert text.index("\nset -u\n") < text.index("command -v dist-embed")


def test_a_set_up_that_fails_ends_the_job() -> None:
    text = script(config_of(slurm={"setup": "true\nsource /nowhere/bin/activate"}))
    head = text[: text.index("set -u")] + "echo went on\n"
    done = subprocess.run(["bash"], input=head, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cluster.submit.slurm.setup: its last line has ended with code 1" in done.stderr


@pytest.mark.parametrize("uri", ['/runs/it\'s $HOME `id` "x" \\', "/runs/größer 大", "s3://b/r"])
def test_whatever_a_run_is_called_the_script_is_shell_and_holds_it(
    uri: str, tmp_path: Path
) -> None:
    text = script(config_of(uri))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    # As far as the script has it before it needs a Slurm.
    head = text[: text.index("MASTER_ADDR=")] + 'printf "%s\\n" "$DIST_EMBED_CONFIG"'
    said = subprocess.run(["bash"], input=head, text=True, capture_output=True, check=True).stdout
    path = tmp_path / "config.yaml"
    path.write_text(said)
    # A core of each task.
    assert load_config(path) == config_of(uri, threads_per_worker=1, launcher="local")


def test_a_node_without_the_command_is_told(tmp_path: Path) -> None:
    (tmp_path / "hostname").write_text("#!/bin/bash\necho node7\n")
    (tmp_path / "hostname").chmod(0o755)
    done = subprocess.run(
        ["/bin/bash"], input=script(config_of()), text=True, env={"PATH": str(tmp_path)},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no dist-embed on node7: cluster.submit.slurm.setup" in done.stderr


_COMMANDS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "echo here",
    "squeue": "",
    "dist-embed": 'echo "$1: ${RAY_ADDRESS-none} $DIST_EMBED_SENT_BY"\n'
    'cat /dev/stdin >"$FOLDER/$1.yaml"',
}


def test_no_ray_of_the_sender_is_used(tmp_path: Path) -> None:
    for name, body in _COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    ray = "ray://elsewhere:1"
    done = subprocess.run(
        ["bash"], input=script(config_of(launcher="ray", address=ray)), text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "FOLDER": str(tmp_path), "RAY_ADDRESS": ray,
             "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "here", "SLURM_PROCID": "0",
             "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"},
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    here = version("dist_embed")
    assert done.stdout == f"prepare: none {here}\ntrain: none {here}\n"
    for command in ("prepare", "train"):
        cluster = load_config(tmp_path / f"{command}.yaml").cluster
        assert (cluster.launcher, cluster.address) == ("local", None)


@pytest.mark.parametrize(
    ("uri", "slurm", "complaint"),
    [
        ("/runs/one", {"nodes": 3}, "slurm.nodes: 3 is not allowed with cluster.num_workers=4"),
        ("/runs/one\n#SBATCH --nodes=9", {}, "is not allowed under Slurm: in one line"),
        ("memory://one", {}, "run.uri: 'memory://one' is not allowed under Slurm, whose tasks"),
        ("/runs/END_OF_CONFIGURATION", {}, "cannot be sent to Slurm"),
        ("/runs/" + "x" * 130_000, {}, "of 262,.* bytes cannot be sent to Slurm; at most 130,000"),
        ("/runs/one", {"hours": 0.1}, r"slurm.hours: 0\.1 is not allowed: .* at least 0\.14"),
    ],
)
def test_what_cannot_be_a_script_is_refused(
    uri: str, slurm: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        script(config_of(uri, slurm))


def test_a_corpus_of_this_process_alone_is_refused() -> None:
    config = config_of()
    corpora = {"train": {"pairs": "memory://a"}, "validation": {"pairs": "b"}}
    data = config.data.model_validate(corpora | {"uri": config.data.uri})
    with pytest.raises(UserError, match=r"data\.train\.pairs: 'memory://a' is not allowed"):
        script(config.model_copy(update={"data": data}))


def test_options_of_one_line_alone_are_taken() -> None:
    with pytest.raises(UserError, match=r"cluster\.submit\.slurm\.partition"):
        config_of(slurm={"partition": "a\nb"})
    with pytest.raises(UserError, match=r"cluster\.submit\.slurm\.options"):
        config_of(slurm={"options": ["--account=a\nrm"]})


CONFIG = """\
run: {uri: runs/one}
data: {synthetic: {}}
train: {max_steps: 9}
"""


def test_a_dry_run_prints_the_script_and_needs_no_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    Path("config.yaml").write_text(CONFIG)
    command = ["submit", "config.yaml", "cluster.submit.to=slurm"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("#!/bin/bash\n#SBATCH --job-name=one\n")
    assert f"uri: {tmp_path}/runs/one\n" in said  # wherever the job starts
    assert main(command) == 2
    assert "squeue is not installed here" in capsys.readouterr().err


def test_where_no_slurm_answers_it_is_told_what_the_command_ended_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [  # Slurm 22.05.8, without a slurm.conf
        "squeue: error: fetch_config: DNS SRV lookup failed",
        "squeue: fatal: Could not establish a configuration source",
    ]
    command = tmp_path / "squeue"
    command.write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in said) + "exit 1")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(UserError) as raised:
        slurm.jobs()
    assert str(raised.value) == "squeue: Could not establish a configuration source"


def test_a_job_that_never_begins_is_told_as_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = (
        "JobId=9\n JobState=PENDING Reason=PartitionNodeLimit\n RunTime=00:00:00 ExitCode=0:0\n "
        "Comment=dist_embed /runs/one\n StdOut=/x\n"
    )
    answers = {"squeue": "", "scontrol": shown, "sbatch": "9\n"}
    monkeypatch.setattr(slurm, "_slurm", lambda command, *arguments, text=None: answers[command])
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    assert main(["submit", str(path), "--to", "slurm"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("job 9: ")
    assert "waits: PartitionNodeLimit: it may never begin as it was sent" in told.err
    answers["scontrol"] = shown.replace("PartitionNodeLimit", "Priority")
    assert slurm.job("9").reason == "Priority"


def test_the_status_of_a_run_is_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", f"{tmp_path}/run"]) == 2
    assert "a run, and not a job; `dist-embed history`" in capsys.readouterr().err


def test_a_run_has_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "squeue": "7|dist_embed /runs/one\n8|another's\n",
        "scontrol": "JobId=7\n JobState=RUNNING Reason=None\n RunTime=00:01:00 ExitCode=0:0\n "
        "Comment=dist_embed /runs/one\n StdOut=/x\n",
        "sbatch": "9\n",
    }
    monkeypatch.setattr(slurm, "_slurm", lambda command, *arguments, text=None: answers[command])
    with pytest.raises(UserError, match=r"'/runs/one' is the run of job 7, which has not ended"):
        slurm.submit("", "/runs/one")
    with pytest.raises(UserError, match=r"'file:///runs/./one/' is the run of job 7"):
        slurm.submit("", "file:///runs/./one/")
    assert slurm.submit("", "/runs/two") == "9"
    answers["scontrol"] = answers["scontrol"].replace("RUNNING", "COMPLETED")
    assert slurm.submit("", "/runs/one") == "9"


def test_a_submission_without_a_target_names_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    assert main(["submit", str(path)]) == 2
    targets = ", ".join(TARGETS)
    assert f"set cluster.submit.to, or give --to: {targets}" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_step_that_is_asked_to_end_gives_its_own_code(tmp_path: Path, code: int) -> None:
    text = script(config_of())
    functions = text[text.index("asks=0") : text.index("set -u")]
    program = (
        f"folder={tmp_path}\nSLURM_JOB_ID=1\n"
        # The step is known only when it is asked for again.
        'squeue() { [ -e "$folder/looked" ] && echo 1.0; touch "$folder/looked"; }\n'
        'scancel() { echo "$@" >>"$folder/asked"; kill -TERM "$pid"; }\n'
        f"{functions}\n"
        "(sleep 0.5; kill -TERM $$) &\n"
        "in_step bash -c 'trap \"sleep 0.3; exit $1\" TERM; while :; do sleep 0.1; done' - "
        f"{code}\n"
        'echo "code $?"\nin_step true\necho "next $?"\n'
    )
    done = subprocess.run(
        ["bash"], input=program, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"code {code}\nnext 143\n"
    assert (tmp_path / "asked").read_text() == "--signal=TERM 1.0\n"


def test_a_request_that_comes_as_a_step_begins_is_not_lost() -> None:
    """Before the script knows the step's number."""
    text = script(config_of())
    functions = text[text.index("asks=0") : text.index("set -u")]
    program = (
        "SLURM_JOB_ID=1\nsqueue() { echo 1.0; }\nset -T\n"
        f'scancel() {{ kill -TERM "$pid"; }}\n{functions}\n'
        'trap \'[ "$BASH_COMMAND" != "pid=\\$!" ] || kill -TERM $$\' DEBUG\n'
        "in_step bash -c 'trap \"exit 143\" TERM; for i in $(seq 50); do sleep 0.1; done'\n"
        'echo "code $?, asked $asks"\n'
    )
    done = subprocess.run(
        ["bash"], input=program, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "code 143, asked 1\n", done.stderr


def ended_job(
    during: str = "train",
    *,
    asked: bool = True,
    left: int = 60,
    end: str | None = None,
    ran: int = 240,
    restarts: int = 0,
    preempted: str = "None",
) -> subprocess.CompletedProcess[str]:
    """A job whose steps end as those do that have saved.

    Args:
        during: the step in which they are asked to.
        asked: whether the script is, which asks the step; else Slurm asks the step itself.
        left: seconds to the job's limit.
        end: what Slurm says of it, by this command.
        ran: seconds since its begin.
        restarts: times that it has begun before.
        preempted: when Slurm says that others take its nodes.
    """
    ask = "kill -TERM $$; while :; do sleep 0.1; done" if asked else "exit 143"
    commands = (
        f"SLURM_JOB_ID=7 SLURM_JOB_NODELIST=here SLURM_RESTART_COUNT={restarts} SECONDS={ran}\n"
        "dist-embed() { :; }\n"
        'scontrol() { case "$*" in "show hostnames"*) echo here ;; "show job 7")\n'
        '    echo "   StartTime=2026-11-29T13:00:00 EndTime=2026-11-29T14:00:00 Deadline=N/A"\n'
        '    echo "   PreemptEligibleTime=2026-11-29T13:00:00 '
        f'PreemptTime={preempted}" ;; *) echo "$@" ;; esac; }}\n'
        'squeue() { case "$*" in *--steps*) echo 7.0 ;; '
        f"*) {end or f'date -d +{left}sec +%FT%T'} ;; esac; }}\n"
        'scancel() { kill -TERM "$pid"; }\n'
        f'srun() {{ case "$*" in *"dist-embed {during}"*) trap "exit 143" TERM\n'
        f"    {ask} ;; esac; }}\n"
    )
    return subprocess.run(
        ["bash"], input=commands + script(config_of()), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("during", ["prepare", "train"])
def test_a_job_whose_time_ends_queues_again_in_all_it_does(during: str) -> None:
    done = ended_job(during)
    assert done.returncode == 143, done.stderr
    assert done.stdout.splitlines()[-1] == "requeue 7"


def test_a_job_that_is_stopped_long_before_its_limit_has_ended_for_good() -> None:
    done = ended_job(left=4000)
    assert (done.returncode, done.stdout) == (143, ""), done.stderr
    assert ended_job(left=4000, preempted="2026-11-29T12:59:00").stdout == ""  # the time before


def test_a_job_whose_nodes_others_take_queues_again_however_often() -> None:
    """Slurm asks the steps, not the script: so tried, 22.05.8."""
    for how in ({"asked": False}, {"ran": 5, "restarts": 99, "during": "prepare"}):
        done = ended_job(left=4000, preempted="2026-11-29T13:05:00", **how)
        assert done.returncode == 143, done.stderr
        assert done.stdout.splitlines()[-1] == "requeue 7"


def test_a_job_that_gets_nowhere_does_not_queue_again() -> None:
    short = ended_job(ran=200)
    assert (short.returncode, short.stdout) == (143, "")
    assert "needs a limit of 480 s (cluster.submit.slurm.hours); it ran for 20" in short.stderr
    counts = ended_job("prepare", restarts=5)
    assert (counts.returncode, counts.stdout) == (143, "")
    assert "5 times it has, and the data are not prepared yet" in counts.stderr
    assert "requeue 7" in ended_job("prepare", restarts=4).stdout
    assert "requeue 7" in ended_job("train", restarts=99).stdout


@pytest.mark.parametrize("end", ["echo NONE", "false"])
def test_a_job_that_nobody_asked_to_save_does_not_queue_again(end: str) -> None:
    """Its workers were, by somebody else; no end of its time is known."""
    done = ended_job(asked=False, end=end)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


def test_a_job_whose_end_slurm_does_not_tell_says_that_it_does_not_queue_again() -> None:
    done = ended_job(end="false")
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == (
        "not queued again: Slurm does not say when the job's time ends; the same submission goes "
        "on\n"
    )
    without_limit = ended_job(end="echo NONE")
    assert (without_limit.returncode, without_limit.stdout, without_limit.stderr) == (143, "", "")


def test_output_on_another_machine_is_told_of(tmp_path: Path) -> None:
    def job(ran: str) -> slurm.Job:
        return slurm.Job("7", "RUNNING", False, "/r", ran, "", f"{tmp_path}/out", 0)

    assert slurm.said(job("00:00:00"), 0) == b""  # it has not begun
    with pytest.raises(UserError, match=rf"job 7 writes to {tmp_path}/out, which .*BatchHost"):
        slurm.said(job("00:00:09"), 0)
    (tmp_path / "out").write_text("line\n")
    assert slurm.said(job("00:00:09"), 2) == b"ne\n"
