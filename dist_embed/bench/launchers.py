"""Time per training step under the Ray launcher and under the local one."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from dist_embed.cluster.launch import launch
from dist_embed.cluster.settings import Launcher
from dist_embed.config.schema import Config
from dist_embed.run.metrics import read_metrics
from dist_embed.storage import uri as storage
from dist_embed.training.tasks import Train

LAUNCHERS: tuple[Launcher, ...] = ("local", "ray")


def measure_launchers(
    config: Config,
    vocabulary_size: dict[str, int],
    *,
    rounds: int,
    steps: int,
    folder_uri: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds per step of short training runs, the launchers in turns.

    Each run logs every tenth of its steps; the first window is left out as warm-up, and the median
    of the others counts.
    """
    every = max(1, steps // 10)
    found: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    for number in range(rounds):
        for name in LAUNCHERS:
            run_uri = storage.join(folder_uri, f"{name}-{number}")
            values = config.model_dump()
            values["run"]["uri"] = run_uri
            values["train"] |= {
                "max_steps": steps, "log_every": every, "evaluate_every": steps + 1,
                "translate_every": 0,
            }  # fmt: skip
            values["checkpoint"]["every_steps"] = steps + 1
            short = Config.model_validate(values)
            launch(
                Train(), short, vocabulary_size=vocabulary_size, on_event=lambda _: None,
                launcher=name,
            )  # fmt: skip
            seconds = [m["step_seconds"] for m in read_metrics(run_uri) if "step_seconds" in m]
            found[name].append(median(seconds[1:]))
            say(f"round {number + 1}, {name}: {found[name][-1] * 1000:.1f} ms per step")
    return {
        "step_seconds": {name: median(values) for name, values in found.items()},
        "all_rounds": found,
    }
