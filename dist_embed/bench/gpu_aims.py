"""What is aimed at on an H100, beside what the stages of ``launch/gpu.sh`` have measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan
from statistics import median
from typing import Any

Figures = Mapping[str, Any]  # of one command, as it has written them
GIB = 2**30
# Where a step lets the host wait by itself (docs/decisions/0029-what-a-gpu-is-asked-for.md), beside
# what TorchRec's exchange asks.
NAMED_WAITS = {"dist_embed/training/step.py:run": 1}


@dataclass(frozen=True)
class Aim:
    """One figure, and what it is to be.

    Attributes:
        about: what it is.
        source: of which command; see `gpu_stages`.
        limit: the most it may be, or with ``at_least`` the least it should be.
        value: from that command's figures.
        told: how to write it.
    """

    about: str
    source: str
    limit: float
    value: Callable[[Figures], float]
    told: str = "{:.2f}"
    at_least: bool = False

    def line(self, found: Mapping[str, Any]) -> str:
        """What was found, and whether it is good."""
        wanted = ("≥ " if self.at_least else "≤ ") + self.told.format(self.limit)
        if self.source not in found:
            return f"{self.about}: not measured (aim {wanted})"
        try:
            value = self.value(found[self.source]["figures"])
        except (LookupError, ValueError, StopIteration, ZeroDivisionError) as exc:
            return f"{self.about}: not to be read from the figures ({exc!r})"
        if isnan(value):
            return f"{self.about}: not measured (aim {wanted})"
        good = value >= self.limit if self.at_least else value <= self.limit
        outcome = "reached" if good else "NOT reached"
        return f"{self.about}: {self.told.format(value)} (aim {wanted}): {outcome}"


def _of_the_copy(lookup: Figures) -> float:
    """The bandwidth of the first table's lookup and update, as a share of that of a copy."""
    one = lookup["found"][0]
    rate = one["update_bytes"] / one["seconds"]["update"]
    return 100.0 * rate * lookup["copy_seconds"] / lookup["copied_bytes"]


def _beside_fbgemm(lookup: Figures, work: str = "") -> float:
    """The worst of the optimizers; with ``_on_device`` of the device's own work."""
    seconds = [one["seconds"] for one in lookup["found"]]
    return max(one[f"update{work}"] / one[f"kernel_update{work}"] for one in seconds)


def _exact(output: Figures) -> Iterable[tuple[float, float]]:
    """Milliseconds and GiB of the exact layer, by block size; the first is ``auto``."""
    for side in output["sides"]:
        if side["name"].startswith("exact"):
            yield 1e3 * median(side["seconds"]["layer"]), side["beyond_bytes"] / GIB


def _with_little_memory(output: Figures) -> float:
    return min((ms for ms, gib in _exact(output) if gib <= 1.5), default=float("inf"))


def _other_waits(step: Figures) -> float:
    """Waits of our own code in a step beside those that are named."""
    ours = {at: n for at, n in step["waits_by_place"].items() if at.startswith("dist_embed/")}
    return float(sum(max(0, count - NAMED_WAITS.get(at, 0)) for at, count in ours.items()))


AIMS = (
    Aim(
        "lookup + update, % of a copy's bandwidth", "lookup", 70, _of_the_copy, "{:.0f}",
        at_least=True,
    ),
    Aim("FBGEMM's public case ÷ FBGEMM's own kernel", "lookup_public", 1.1, _beside_fbgemm),
    Aim(
        "of it the device's own work", "lookup_public", 1.1,
        lambda lookup: _beside_fbgemm(lookup, "_on_device"),
    ),
    Aim("the same with Adam", "lookup_adam", 1.1, _beside_fbgemm),
    Aim(
        "exact output, 8,192 × 2,304 × 256,000, ms", "output", 75,
        lambda output: next(iter(_exact(output)))[0], "{:.1f}",
    ),
    Aim(
        "the same within 1.5 GiB beside gradients, ms", "output_blocks", 100, _with_little_memory,
        "{:.1f}",
    ),
    Aim(
        "base Transformer in bf16, target tokens/s", "speed", 400_000,
        lambda speed: speed["tokens_per_second"]["dist_embed bf16"], "{:,.0f}", at_least=True,
    ),
    Aim(
        "a step at 20 million words ÷ at 100 thousand", "vocabulary", 1.1,
        lambda found: found["speeds"][0][-1]["ratio_to_first"],
    ),
    Aim("host waits in a step that no page names", "step", 0, _other_waits, "{:.0f}"),
)  # fmt: skip


def aim_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for each aim.

    Args:
        found: the figures of every command, by its name.
    """
    return [aim.line(found) for aim in AIMS]
