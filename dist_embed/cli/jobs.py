"""``dist-embed submit``, ``jobs``, ``status``, ``logs`` and ``stop``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from dist_embed.cli.config import add_config_arguments
from dist_embed.config.load import load_config
from dist_embed.errors import UserError
from dist_embed.jobs.settings import TARGETS
from dist_embed.storage import uri as storage
from dist_embed.streams import say

if TYPE_CHECKING:
    from dist_embed.config.schema import Config
    from dist_embed.jobs.slurm import Job


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    submit = commands.add_parser("submit", help="send a run to a cluster as a job")
    add_config_arguments(submit)
    submit.add_argument("--to", choices=TARGETS, help="instead of cluster.submit.to")
    submit.add_argument(
        "--follow", action="store_true", help="show what the job says, and end as it ends"
    )
    submit.add_argument("--dry-run", action="store_true", help="print what would be sent")
    submit.set_defaults(call=_submit)

    jobs = commands.add_parser("jobs", help="the jobs that are known to the cluster")
    jobs.set_defaults(call=_jobs)
    for name, what, call in (
        ("status", "how a job stands", _status),
        ("logs", "what a job has said", _logs),
        ("stop", "ask a job to save and end; `submit` goes on from there", _stop),
    ):
        parser = commands.add_parser(name, help=what)
        of_runs = ", or a run's folder or URL: what its workers have logged"
        help = "its number" + (of_runs if name == "logs" else "")
        parser.add_argument("job", metavar="JOB", help=help)
        if name == "logs":
            parser.add_argument("--follow", action="store_true", help="until the job has ended")
        parser.set_defaults(call=call)


def _submit(arguments: argparse.Namespace) -> None:
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.jobs import slurm

    config = load_config(arguments.config, arguments.overrides)
    target = arguments.to or config.cluster.submit.to
    if target is None:
        raise UserError(f"where to? set cluster.submit.to, or give --to: {', '.join(TARGETS)}")
    config = with_absolute_paths(config, on_cluster=False)
    if target == "kubernetes":
        _to_kubernetes(config, arguments)
        return
    text = slurm.script(config)
    if arguments.dry_run:
        print(text, end="")
        return
    number = slurm.submit(text)
    print(f"job {number}: {config.run.uri}", flush=True)
    if arguments.follow:
        _end_as(slurm.follow(number, _say))


def _to_kubernetes(config: Config, arguments: argparse.Namespace) -> None:
    from dist_embed.jobs import kubernetes

    if arguments.follow:
        raise UserError("--follow is not for Kubernetes: kubectl logs --follow job/NAME")
    job = kubernetes.manifest(config)
    if arguments.dry_run:
        print(kubernetes.to_yaml(job), end="")
        return
    kubernetes.submit(job)
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    print(f"rayjob {name} in namespace {namespace}: {config.run.uri}")


def _jobs(arguments: argparse.Namespace) -> None:
    del arguments
    from dist_embed.cli.table import print_table
    from dist_embed.jobs import slurm

    rows = [
        [job.number, job.state.lower(), job.minutes, job.reason, job.run_uri]
        for job in slurm.jobs()
    ]
    print_table(["job", "state", "running for", "waits for", "run"], rows)


def _status(arguments: argparse.Namespace) -> None:
    from dist_embed.jobs import slurm
    from dist_embed.run.metrics import read_metrics

    job = slurm.job(arguments.job)
    waits = f", waits: {job.reason}" if job.reason else ""
    ended = f", exit code {job.exit_code}" if job.is_over else ""
    print(f"job {job.number}: {job.state.lower()}, running for {job.minutes}{waits}{ended}")
    print(f"run: {job.run_uri}")
    print(f"output: {job.output}")
    lines = [line for line in read_metrics(job.run_uri) if "loss" in line]
    if lines:
        print(f"newest line: step {lines[-1]['step']}, loss {lines[-1]['loss']:.4f}")


def _logs(arguments: argparse.Namespace) -> None:
    from dist_embed.jobs import slurm
    from dist_embed.run.logs import is_run, read_logs

    if is_run(arguments.job):
        if arguments.follow:
            raise UserError(f"--follow: {arguments.job} is a run, and only a job can be followed")
        for part in read_logs(storage.absolute(arguments.job)):
            _say(part)
    elif arguments.follow:
        _end_as(slurm.follow(arguments.job, _say))
    else:
        slurm.output_of(slurm.job(arguments.job), _say)


def _stop(arguments: argparse.Namespace) -> None:
    from dist_embed.jobs import slurm

    job = slurm.stop(arguments.job)
    print(f"job {job.number}: {job.state.lower()}" + ("" if job.is_over else ", asked to stop"))


def _say(output: bytes) -> None:
    if sys.stdout is not None:
        sys.stdout.buffer.write(output)  # a letter may come in two parts
        sys.stdout.flush()


def _end_as(job: Job) -> None:
    """With the job's exit code, where it is not 0."""
    if job.exit_code or job.state != "COMPLETED":
        say(f"dist-embed: job {job.number}: {job.state.lower()}")
        raise SystemExit(job.exit_code or 1)
