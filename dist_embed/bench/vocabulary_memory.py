"""How much memory a size of vocabulary takes, and the largest that trains on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from dist_embed.bench.memory import peak_bytes, reset_peak
from dist_embed.bench.vocabulary_cases import Case, Trainer, build_trainer, prepared
from dist_embed.bench.workers import LOG_FOLDER, TIMEOUT_SECONDS, Say
from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import TrainingState
from dist_embed.cluster.local import launch_local
from dist_embed.errors import RunFailed
from dist_embed.observe.events import Event
from dist_embed.observe.quiet import redirect_output
from dist_embed.parallel.group import Group, joined_group

PHASES = ("built", "trained", "saved", "loaded")
STEPS = 3
FIRST_WORDS = 250_000
LEAST_WORDS = 10_000  # where fewer are needed, something else than memory is wrong
Peaks = dict[str, int]


def measure_memory(case: Case, *, num_workers: int, folder: str | None, say: Say) -> Peaks | None:
    """Peak resident bytes of the fullest worker in each of `PHASES`, of processes of their own.

    Saving and loading as with ``checkpoint.saving: in_place``, below ``folder``; None: neither. Nor
    for the cases of plain PyTorch.

    Returns None where a worker fails, as for lack of memory.
    """
    say(f"memory of {case.kind}, {case.num_words:,} words, width {case.width}")
    try:
        found: Peaks = launch_local(
            _measure, (case, folder), num_workers=num_workers,
            on_event=lambda event: say(event["text"]), log_folder=str(LOG_FOLDER),
        )  # fmt: skip
    except RunFailed as exc:
        say(f"  failed: {str(exc).splitlines()[-1][:200]}")
        return None
    return found


def largest(case_of: Callable[[int], Case], *, num_workers: int, say: Say) -> tuple[int, int]:
    """The most words that train `STEPS` steps here, and the fewest that did not."""

    def trains(num_words: int) -> bool:
        case = case_of(num_words)
        return measure_memory(case, num_workers=num_workers, folder=None, say=say) is not None

    return largest_that(trains)


def largest_that(trains: Callable[[int], bool]) -> tuple[int, int]:
    """The most words that train, and the fewest that did not, found by trying.

    Sizes are doubled until one fails, or halved until one does not; then the gap is halved twice.
    """
    held = failed = FIRST_WORDS
    if trains(FIRST_WORDS):
        while trains(failed := 2 * held):
            held = failed
    else:
        while not trains(held := failed // 2):
            failed = held
            if failed < LEAST_WORDS:
                raise RunFailed(f"not even {failed:,} words train here, see above")
    for _ in range(2):
        middle = (held + failed) // 2
        if trains(middle):
            held = middle
        else:
            failed = middle
    return held, failed


def _measure(case: Case, folder: str | None, emit: Callable[[Event], None]) -> Peaks:
    # Where memory ends, the kernel is to end this process and no other.
    Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group("cpu", TIMEOUT_SECONDS) as group:
        peaks: dict[str, int] = {}
        reset_peak()
        trainer = build_trainer(case, group)
        peaks["built"] = _fullest(group)
        work = prepared(trainer, case, group, STEPS + 1)
        for number, (this, following) in enumerate(pairwise(work), start=1):
            trainer.step(number, this, following)
        peaks["trained"] = _fullest(group)
        if trainer.live and folder is not None:
            _save_and_load(trainer, group, folder, peaks)
        return peaks


def _save_and_load(trainer: Trainer, group: Group, folder: str, peaks: Peaks) -> None:
    store = open_checkpoints(folder)
    settings = CheckpointSection(
        saving="in_place", max_failures=0, timeout_seconds=TIMEOUT_SECONDS,
        drain_seconds=TIMEOUT_SECONDS, keep_last=1, keep_best=0,
    )  # fmt: skip
    saver = Saver(store, group, settings, Pruner(store, settings), report=lambda _: None)
    saver.save(TrainingState(group, STEPS, trainer.live))
    peaks["saved"] = _fullest(group)
    before = {name: tensor.data.flatten()[:1000].clone() for name, tensor in trainer.live.items()}
    for tensor in trainer.live.values():
        tensor.data.zero_()
    load_newest(store, TrainingState(group, 0, trainer.live), lambda _: None, in_place=True)
    peaks["loaded"] = _fullest(group)
    for name, tensor in trainer.live.items():
        assert torch.equal(tensor.data.flatten()[:1000], before[name])


def _fullest(group: Group) -> int:
    """The peak of the fullest worker since the last call. Collective."""
    peak = torch.tensor(peak_bytes())
    torch.distributed.all_reduce(peak, torch.distributed.ReduceOp.MAX, group=group.process_group)
    reset_peak()
    return int(peak)
