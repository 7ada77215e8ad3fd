"""What a run under Ray tells Prometheus, through Ray's own exporter on each node."""

from __future__ import annotations

from ray.util.metrics import Gauge

from dist_embed.observe.events import Emit, Event

_OF_RUN = {
    "step": "optimizer steps that are done",
    "max_steps": "optimizer steps of the whole run",
    "loss": "smoothed loss per target token since the log line before",
    "tokens_per_second": "target tokens of all workers a second",
    "eta_seconds": "until the last step",
}
_OF_WORKER = {
    "own_seconds": "spent in steps since the log line before, without waits for other workers",
    "rows_requested": "distinct rows looked up since the log line before",
    "memory_bytes": "the most that the worker has held",
}


class RunGauges:
    """Gauges ``ray_dist_embed_…`` of a run, set at its log lines from what worker 0 tells.

    Their tag is ``run``; of figures of a worker ``worker`` too, of phases ``phase`` as well. For a
    process of Ray.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._of_run = {
            name: Gauge(f"dist_embed_{name}", what, ("run",)) for name, what in _OF_RUN.items()
        }
        self._of_worker = {
            name: Gauge(f"dist_embed_{name}", what, ("run", "worker"))
            for name, what in _OF_WORKER.items()
        }
        self._phases = Gauge(
            "dist_embed_phase_seconds",
            "of steps since the log line before, by phase",
            ("run", "worker", "phase"),
        )

    def show(self, event: Event) -> None:
        """Take an event of the run; other than progress says nothing here."""
        if event["kind"] != "progress":
            return
        for name, gauge in self._of_run.items():
            gauge.set(float(event[name]), {"run": self._run})
        workers = event["workers"]
        for name, gauge in self._of_worker.items():
            for rank, value in enumerate(workers[name]):
                gauge.set(float(value), {"run": self._run, "worker": str(rank)})
        for phase, of_workers in workers["phases"].items():
            for rank, seconds in enumerate(of_workers):
                tags = {"run": self._run, "worker": str(rank), "phase": phase}
                self._phases.set(float(seconds), tags)


def also_as_gauges(emit: Emit, run: str) -> Emit:
    """``emit``, whose events become a run's gauges too. For a process of Ray."""
    gauges = RunGauges(run)

    def emit_both(event: Event) -> None:
        gauges.show(event)
        emit(event)

    return emit_both
