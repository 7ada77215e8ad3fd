"""A Ray cluster's job server, and the jobs there, through Ray's own client.

What is done here to the client: every request has a time limit, and what goes wrong is said in a
line (Ray 2.60 waits for ever, and answers with the server's traceback).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import ray
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from dist_embed.errors import UserError
from dist_embed.jobs.job import Job, check_is_free
from dist_embed.jobs.job_server_address import is_loopback
from dist_embed.jobs.ray_request import OURS, RUN_URI, new_id

# It tells of every upload.
logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)

CONNECT_SECONDS = 5.0
FIRST_SECONDS = 10.0  # for the first answer, which shows that it is one
ANSWER_SECONDS = 60.0
UPLOAD_SECONDS = 900.0  # for all of it
_REFUSALS = (401, 403)  # of who sends no token, or a wrong one


class _Client(JobSubmissionClient):
    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        # The first is the limit of sending, too (urllib3 2).
        limits = (
            UPLOAD_SECONDS if more.get("data") else CONNECT_SECONDS,
            FIRST_SECONDS if endpoint == "/api/version" else ANSWER_SECONDS,
        )
        try:
            with _silence_told(self._address, limits):
                return super()._do_request(method, endpoint, timeout=limits, **more)
        except AuthenticationError as exc:
            wrong = "does not take this token" if "failed" in str(exc) else "asks for a token"
            raise UserError(
                f"the job server at {self._address} {wrong}: RAY_AUTH_MODE=token, and the "
                "cluster's in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            ) from None

    def _raise_error(self, r: requests.Response) -> NoReturn:
        lines = r.text.strip().splitlines() or [f"status {r.status_code}"]  # a traceback's last
        raise UserError(f"the job server at {self._address}: {lines[-1]}")


@contextmanager
def _silence_told(url: str, limits: tuple[float, float]) -> Iterator[None]:
    """Say in a line why nothing has answered there within ``limits``, as `requests` takes them."""
    try:
        yield
    except requests.Timeout as exc:
        within = limits[0] if isinstance(exc, requests.ConnectTimeout) else limits[1]
        raise UserError(f"the job server at {url} has not answered within {within:.0f} s") from None
    except requests.RequestException as exc:
        raise UserError(f"no job server of Ray answers at {url}: {_cause(exc)}") from None


def _cause(error: BaseException) -> str:
    """What the system has against a request, without the objects around it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return "what listens there does not speak HTTP"


class RayServer:
    """The jobs of a Ray cluster (a `dist_embed.jobs.job.Cluster`).

    Args:
        url: of the job server, from `job_server`, after `use_token`.
        insecure: whether it may be one that asks for no token, on another machine.

    Raises UserError where it does not answer, or not to us, or to everybody.
    """

    def __init__(self, url: str, *, insecure: bool) -> None:
        self._url = url
        if not insecure and not is_loopback(url):
            _check_asks_for_token(url)
        os.environ["RAY_API_SERVER_ADDRESS"] = url  # it comes before what the client is given
        try:
            self._client = _Client(url)
        except (AuthenticationError, RuntimeError, requests.RequestException, LookupError) as exc:
            raise UserError(f"what answers at {url} is no job server of Ray: {exc}") from exc

    def submit(self, request: dict[str, Any]) -> str:
        """Send a job (of `ray_request.request`); returns its name.

        Raises UserError where a job that has not ended has the same run.
        """
        check_is_free(request["metadata"][RUN_URI], self.jobs())
        there = self._client._server_ray_version or ""
        if there.split(".")[:2] != ray.__version__.split(".")[:2]:
            print(f"dist-embed: Ray {there} there, {ray.__version__} here", file=sys.stderr)
        return self._client.submit_job(**request, submission_id=new_id(request))

    def page_of(self, name: str) -> str:
        """A job's page in the dashboard."""
        return f"{self._url}/#/jobs/{name}"

    def jobs(self) -> list[Job]:
        """Those that `submit` has sent and the cluster still knows, the oldest first."""
        ours = [one for one in self._client.list_jobs() if OURS in (one.metadata or {})]
        return [self._as_job(one) for one in sorted(ours, key=lambda one: one.start_time or 0)]

    def job(self, name: str) -> Job:
        """One by its name. Raises UserError where the cluster does not know it, or not as ours."""
        found = self._client.get_job_info(name)
        if OURS not in (found.metadata or {}):
            raise UserError(f"job {name} was not sent by `dist-embed submit`")
        return self._as_job(found)

    def stop(self, name: str) -> Job:
        """Ask a job to end: the run saves after its step."""
        found = self.job(name)
        if not found.is_over:
            self._client.stop_job(name)
            found = self.job(name)
        return found

    def said(self, job: Job, since: int) -> bytes:
        """What a job has written, from that byte on. All of it travels (Ray 2.60)."""
        return self._client.get_job_logs(job.name).encode()[since:]

    def _as_job(self, found: JobDetails) -> Job:
        metadata = found.metadata or {}
        started = (found.start_time or 0) / 1000
        ended = (found.end_time or 0) / 1000 or time.time()
        has_run = found.driver_exit_code is not None or found.status == JobStatus.RUNNING
        return Job(
            name=found.submission_id,
            state=str(found.status),
            is_over=found.status.is_terminal(),
            run_uri=metadata.get(RUN_URI, ""),
            running_for=str(timedelta(seconds=int(ended - started))),
            reason="" if has_run else (found.message or "").strip().partition("\n")[0],
            output=self.page_of(found.submission_id),
            exit_code=_exit_code(found),
        )


def _check_asks_for_token(url: str) -> None:
    """Raise UserError for a server that answers one who has no token. It is not sent one before:
    who serves everybody may be anybody.
    """
    limits = (CONNECT_SECONDS, FIRST_SECONDS)
    with _silence_told(url, limits):
        answer = requests.get(f"{url}/api/jobs/", timeout=limits, allow_redirects=False)
    if answer.status_code == 200:
        raise UserError(
            f"{url} asks for no token, so whoever reaches it runs code there: start the "
            "cluster with RAY_AUTH_MODE=token (docs/ports.md); --insecure sends all the same"
        )
    if answer.status_code not in _REFUSALS:
        raise UserError(
            f"what answers at {url} is no job server of Ray that asks for a token: status "
            f"{answer.status_code}"
        )


def _exit_code(found: JobDetails) -> int:
    if found.status == JobStatus.STOPPED:  # Ray keeps no code of these
        return 128 + signal.SIGTERM
    if found.status == JobStatus.FAILED:
        code = found.driver_exit_code
        return 1 if code is None else 128 - code if code < 0 else code
    return 0
