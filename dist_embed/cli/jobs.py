"""``dist-embed submit``, ``jobs``, ``status``, ``logs`` and ``stop``."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_embed.cli.config import add_config_arguments
from dist_embed.config.load import load_config
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.jobs.settings import TARGETS
from dist_embed.parallel.stop import ending_signal
from dist_embed.storage import uri as storage
from dist_embed.streams import say, write_out

if TYPE_CHECKING:
    from dist_embed.jobs.job import Cluster, Job
    from dist_embed.jobs.ray_server import RayServer

_ASKED = ("ray", "slurm")  # targets that know of their jobs


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    submit = commands.add_parser("submit", help="send a run to a cluster as a job")
    add_config_arguments(submit)
    submit.add_argument("--to", choices=TARGETS, help="instead of cluster.submit.to")
    submit.add_argument(
        "--follow", action="store_true", help="show what the job says, and end as it ends"
    )
    submit.add_argument("--dry-run", action="store_true", help="print what would be sent")
    submit.add_argument(
        "--working-dir", metavar="DIR", help="Ray: a folder to send, in which the job starts"
    )
    submit.add_argument(
        "--with-package", action="store_true",
        help="Ray: with the folder's dist_embed/, which then comes before the nodes' own",
    )  # fmt: skip
    submit.add_argument(
        "--address", metavar="URL",
        help="Ray: its job server; instead of cluster.submit.ray.address, RAY_API_SERVER_ADDRESS",
    )  # fmt: skip
    _add_insecure(submit)
    submit.set_defaults(call=_submit)

    jobs = commands.add_parser("jobs", help="the jobs that are known to the cluster")
    _add_cluster(jobs)
    jobs.set_defaults(call=_jobs)
    for name, what, call in (
        ("status", "how a job stands", _status),
        ("logs", "what a job has said", _logs),
        ("stop", "ask a job to save and end; `submit` goes on from there", _stop),
    ):
        parser = commands.add_parser(name, help=what)
        of_runs = ", or a run's folder or URL: what its workers have logged"
        help = "its name: under Slurm a number" + (of_runs if name == "logs" else "")
        parser.add_argument("job", metavar="JOB", help=help)
        if name == "logs":
            parser.add_argument("--follow", action="store_true", help="until the job has ended")
        _add_cluster(parser)
        parser.set_defaults(call=call)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", choices=_ASKED, help="the kind of cluster; else by the job's name")
    parser.add_argument(
        "--address", metavar="URL", help="Ray: its job server; else RAY_API_SERVER_ADDRESS"
    )
    _add_insecure(parser)


def _add_insecure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--insecure", action="store_true", help="Ray: also without token authentication"
    )


def _submit(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.overrides)
    target = arguments.to or config.cluster.submit.to
    if target is None:
        raise UserError(f"where to? set cluster.submit.to, or give --to: {', '.join(TARGETS)}")
    if target != "ray" and (arguments.working_dir or arguments.with_package or arguments.address):
        raise UserError("--working-dir, --with-package and --address are for --to ray")
    send = {
        "ray": _submit_to_ray, "slurm": _submit_to_slurm, "kubernetes": _submit_to_kubernetes,
    }[target]  # fmt: skip
    send(config, arguments)


def _submit_to_slurm(config: Config, arguments: argparse.Namespace) -> None:
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.jobs import slurm

    config = with_absolute_paths(config, on_cluster=False)
    text = slurm.script(config)
    if arguments.dry_run:
        write_out(text.encode())
        return
    number = slurm.submit(text, config.run.uri)
    print(f"job {number}: {config.run.uri}", flush=True)
    if arguments.follow:
        _follow(slurm, number)
        return
    with suppress(UserError):  # it is sent, whatever the next question is answered
        if (found := slurm.job(number)).reason:
            say(f"dist-embed: {_stands(found)}")


def _submit_to_ray(config: Config, arguments: argparse.Namespace) -> None:
    from dist_embed.jobs.as_yaml import as_yaml
    from dist_embed.jobs.ray_request import local_paths, request
    from dist_embed.storage.temporary import temporary_folder

    sent = request(config, ships_folder=arguments.working_dir is not None)
    if arguments.dry_run:
        if arguments.working_dir:
            sent["runtime_env"]["working_dir"] = arguments.working_dir
        write_out(as_yaml(sent).encode())
        return
    server = _ray(arguments.address or config.cluster.submit.ray.address, arguments)
    # Also of a server on this machine: a tunnel to another looks the same.
    if keys := local_paths(config):
        say(f"dist-embed: {', '.join(keys)}: taken as paths that all nodes of the cluster share")
    with temporary_folder("dist_embed-job-") as folder:
        if arguments.working_dir:
            packed = _packed(config, arguments, Path(folder))
            sent["runtime_env"]["working_dir"] = str(packed)
        name = server.submit(sent)
    print(f"job {name}: {config.run.uri}\ndashboard: {server.page_of(name)}", flush=True)
    if arguments.follow:
        _follow(server, name)


def _submit_to_kubernetes(config: Config, arguments: argparse.Namespace) -> None:
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.jobs import kubernetes
    from dist_embed.jobs.as_yaml import as_yaml

    if arguments.follow:
        raise UserError("--follow is not for Kubernetes: kubectl logs --follow job/NAME")
    job = kubernetes.manifest(with_absolute_paths(config, on_cluster=False))
    if arguments.dry_run:
        write_out(as_yaml(job).encode())
        return
    kubernetes.submit(job)
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    print(f"rayjob {name} in namespace {namespace}: {config.run.uri}")


def _packed(config: Config, arguments: argparse.Namespace, folder: Path) -> Path:
    from zipfile import ZipFile

    from dist_embed.config.paths import path_of
    from dist_embed.jobs.job_server_address import token_file
    from dist_embed.jobs.ray_request import check_corpora
    from dist_embed.jobs.working_dir import pack

    file = folder / "working_dir.zip"
    own = {Path(path) for uri in (config.run.uri, config.data.uri) if (path := path_of(uri))}
    size = pack(
        arguments.working_dir, file, with_package=arguments.with_package, but={*own, token_file()}
    )
    with ZipFile(file) as archive:
        check_corpora(config, archive.namelist())
    print(f"{arguments.working_dir}: {size / 2**20:.1f} MiB packed")
    return file


def _jobs(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table

    clusters = _clusters(arguments)
    found, complaints = [], []
    for cluster in clusters:
        try:
            found += cluster().jobs()
        except UserError as exc:  # the others may answer
            complaints.append(exc)
    if len(complaints) == len(clusters):
        raise complaints[0]
    for complaint in complaints:
        say(f"dist-embed: {complaint}")
    rows = [
        [job.name, job.state.lower(), job.running_for, job.reason, job.run_uri] for job in found
    ]
    print_table(["job", "state", "running for", "why", "run"], rows)


def _status(arguments: argparse.Namespace) -> None:
    from dist_embed.run.logs import is_run
    from dist_embed.run.metrics import figure, read_metrics

    if is_run(arguments.job):
        raise UserError(
            f"status: {arguments.job!r} is not allowed: a run, and not a job; `dist-embed history` "
            "and `dist-embed report` show how a run stands"
        )
    job = _cluster_of(arguments).job(arguments.job)
    print(_stands(job))
    print(f"run: {job.run_uri}")
    print(f"output: {job.output}")
    for line in reversed(read_metrics(job.run_uri)):
        if (loss := figure(line, "loss")) is not None:
            print(f"newest line: step {line['step']}, loss {loss:.4f}")
            break


def _stands(job: Job) -> str:
    waits = f", {'because' if job.is_over else 'waits'}: {job.reason}" if job.reason else ""
    ended = f", exit code {job.exit_code}" if job.is_over else ""
    return f"job {job.name}: {job.state.lower()}, running for {job.running_for}{waits}{ended}"


def _logs(arguments: argparse.Namespace) -> None:
    from dist_embed.run.logs import is_run, read_logs

    if is_run(arguments.job):
        if arguments.follow:
            raise UserError(f"--follow: {arguments.job} is a run, and only a job can be followed")
        for part in read_logs(storage.absolute(arguments.job)):
            write_out(part)
        return
    cluster = _cluster_of(arguments)
    if arguments.follow:
        _follow(cluster, arguments.job)
    else:
        write_out(cluster.said(cluster.job(arguments.job), 0))


def _stop(arguments: argparse.Namespace) -> None:
    job = _cluster_of(arguments).stop(arguments.job)
    has_ended = f"has ended: {job.state.lower()}, exit code {job.exit_code}"
    asked = f"{job.state.lower()}, asked to stop"
    print(f"job {job.name}: {has_ended if job.is_over else asked}")


def _cluster_of(arguments: argparse.Namespace) -> Cluster:
    """The cluster of the job that is named: Slurm's names are numbers, Ray's are not."""
    target = arguments.to or ("slurm" if arguments.job.isdigit() else "ray")
    return _slurm() if target == "slurm" else _ray(arguments.address, arguments)


def _clusters(arguments: argparse.Namespace) -> list[Callable[[], Cluster]]:
    """What reaches each that is known here, or that of ``--to``."""
    from dist_embed.jobs import job_server_address

    known = {
        "ray": arguments.address or job_server_address.is_known(),
        "slurm": shutil.which("squeue") and not arguments.address,
    }
    ways = {"ray": lambda: _ray(arguments.address, arguments), "slurm": _slurm}
    wanted = [arguments.to] if arguments.to else [name for name in _ASKED if known[name]]
    if not wanted:
        raise UserError(
            "no cluster is known here: there is no squeue of Slurm; of Ray give --address or "
            "RAY_API_SERVER_ADDRESS=http://HEAD:8265"
        )
    return [ways[name] for name in wanted]


def _slurm() -> Cluster:
    from dist_embed.jobs import slurm

    return slurm


def _ray(address: str | None, arguments: argparse.Namespace) -> RayServer:
    from dist_embed.installed import require
    from dist_embed.jobs.job_server_address import job_server, use_token

    require("ray")
    url = job_server(address)
    use_token(url, insecure=arguments.insecure)
    from dist_embed.jobs.ray_server import RayServer

    return RayServer(url, insecure=arguments.insecure)


def _follow(cluster: Cluster, name: str) -> None:
    """Show what a job says; end with its exit code where that is not 0."""
    from dist_embed.jobs.job import follow

    try:
        # In bytes: a letter may come in two parts.
        job = follow(cluster, name, write_out, lambda job: say(f"dist-embed: {_stands(job)}"))
    finally:
        if ending_signal() is not None:
            say(f"dist-embed: job {name} goes on: dist-embed logs --follow {name}, or stop {name}")
    if job.exit_code:
        why = f": {job.reason}" if job.reason else ""
        say(f"dist-embed: job {job.name}: {job.state.lower()}{why}")
        raise SystemExit(job.exit_code)
