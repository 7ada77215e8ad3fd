"""How much memory a worker of a whole run takes by the size of the vocabulary, words included."""

from __future__ import annotations

from dataclasses import dataclass

from dist_embed.bench.vocabulary_cases import SAMPLED, SENTENCE_TOKENS, Case, case_config
from dist_embed.bench.vocabulary_memory import largest_that
from dist_embed.bench.workers import Say
from dist_embed.cluster.launch import launch
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.words_folder import write_words_folder
from dist_embed.errors import RunFailed, UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.temporary import temporary_folder
from dist_embed.training.tasks import Train

STEPS = 3


@dataclass(frozen=True)
class RunPeaks:
    """Peak resident bytes of worker 0, which does what all do and what one does for all.

    Attributes:
        started: of a run that starts, trains and saves.
        resumed: of one that loads that and does the same.
    """

    started: int
    resumed: int


def measure_run(case: Case, *, num_workers: int, say: Say) -> RunPeaks | None:
    """`train` on words of nine letters, as many on either side, one vocabulary, three tables.

    Saves and loads with ``checkpoint.saving: in_place``. Returns None where a run fails, or is
    refused.
    """
    say(f"memory of a run with {case.num_words:,} words, width {case.width}")
    size = {"source": case.num_words, "target": case.num_words}
    with temporary_folder("dist_embed-bench-") as folder:
        sentences = STEPS * num_workers * case.tokens // SENTENCE_TOKENS
        data = write_words_folder(
            storage.join(folder, "data"), size, sentences=sentences, length=SENTENCE_TOKENS - 1
        )
        peaks = []
        for lives in (1, 2):
            try:
                found = launch(
                    Train(data.folder_uri), _config(case, folder, num_workers, lives * STEPS),
                    vocabulary_size=size, word_tables=True, on_event=lambda event: None,
                    launcher="local",
                )  # fmt: skip
            except (RunFailed, UserError) as exc:
                say(f"  failed: {str(exc).splitlines()[-1][:200]}")
                return None
            assert found.steps == lives * STEPS
            peaks.append(found.peak_memory_bytes)
    return RunPeaks(*peaks)


def largest_run(case: Case, *, num_workers: int, say: Say) -> tuple[int, int]:
    """The most words that train here, and the fewest that do not; see `largest_that`."""

    def trains(num_words: int) -> bool:
        sized = Case(case.kind, num_words, case.width, case.tokens, case.num_samples)
        return measure_run(sized, num_workers=num_workers, say=say) is not None

    return largest_that(trains)


def run_case(num_words: int, width: int, tokens: int, num_samples: int) -> Case:
    """This project's way to train a size."""
    return Case(SAMPLED, num_words, width, tokens, num_samples)


def _config(case: Case, folder: str, num_workers: int, max_steps: int) -> Config:
    values = case_config(case).model_dump()
    values["run"]["uri"] = storage.join(folder, "run")
    values["data"]["uri"] = storage.join(folder, "data")
    values["tokenizer"]["shared"] = True
    values["train"] |= {
        "max_steps": max_steps, "batch_tokens": num_workers * case.tokens,
    }  # fmt: skip
    values["checkpoint"] |= {"saving": "in_place"}
    values["cluster"] |= {
        "launcher": "local", "num_workers": num_workers, "device": "cpu", "threads_per_worker": 1,
    }  # fmt: skip
    return config_from_dict(values)
