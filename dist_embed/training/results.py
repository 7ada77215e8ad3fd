"""What the tasks of a run give back. Nothing here imports PyTorch: the launching process has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from dist_embed.errors import RunStopped


@dataclass(frozen=True)
class TrainResult:
    """What a training has done.

    Attributes:
        run_uri: the run's folder or URL.
        data_folder: the prepared data that it was trained on.
        steps: at which it stands.
        resumed_at: of the checkpoint that it went on from, when workers first began; 0: it started
            from scratch.
        stopped: whether it was asked to end early.
        skipped_steps: of those since, as a loss or gradient was not finite.
        peak_memory_bytes: of worker 0, on its device.
        tokens_per_second: target tokens, the median over its log lines since; None: none yet.
    """

    run_uri: str
    data_folder: str
    steps: int
    resumed_at: int
    stopped: bool
    skipped_steps: int
    peak_memory_bytes: int
    tokens_per_second: float | None = None


class TrainingStopped(RunStopped):
    """A training ended early because it was asked to, with a checkpoint.

    Attributes:
        result: what it has done until then.
    """

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type[TrainingStopped], tuple[str, TrainResult]]:
        return type(self), (str(self), self.result)


@dataclass(frozen=True)
class AgainstExact:
    """What candidate lists do to some of a split's sentences.

    Attributes:
        sentences: how many, spread evenly over the split.
        bleu: of their translations with lists.
        exact_bleu: of those by a search among all words.
        same: how many translations are the same.
    """

    sentences: int
    bleu: float
    exact_bleu: float
    same: int


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on a held-out split.

    Attributes:
        data_folder: the prepared data that the split is of.
        split: which.
        step: of the checkpoint.
        loss: mean -log p per target token of the split, exact.
        training_loss: the same of some training data, where that was asked for.
        perplexity: exp of the loss.
        bleu: corpus BLEU, 0 to 100, of the split's translations.
        chrf: chrF2, 0 to 100, of them.
        bleu_signature: how BLEU was computed.
        against_exact: what candidate lists lose, where that was asked for and there are any.
        sentences: of the split.
        sentences_per_second: that were translated.
        translations: one for each sentence, in order.
        scored: the same as they were scored, with one character for an unknown word.
    """

    data_folder: str
    split: str
    step: int
    loss: float
    training_loss: float | None
    perplexity: float
    bleu: float
    chrf: float
    bleu_signature: str
    against_exact: AgainstExact | None
    sentences: int
    sentences_per_second: float
    translations: list[str]
    scored: list[str]


@dataclass(frozen=True)
class Translations(Sequence[str]):
    """Translations of some lines, and a sequence of them.

    Attributes:
        step: of the checkpoint that has translated; None: there was nothing to translate.
        lines: one for each line that was given, in order.
    """

    step: int | None
    lines: list[str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.lines[index]
