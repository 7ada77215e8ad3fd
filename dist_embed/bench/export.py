"""The exported translator beside ours: do they write the same, and how fast is each?"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dist_embed.config.schema import Config
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.export.ctranslate2_model import Quantization, export_ctranslate2
from dist_embed.installed import require
from dist_embed.storage.temporary import temporary_folder
from dist_embed.training.scoring import Scorer


@dataclass(frozen=True)
class EngineFigures:
    """One kind of weights.

    Attributes:
        kind: of the weights.
        same: sentences that are translated exactly as by us.
        bleu: of the split, computed as the run does.
        sentences_per_second: of the engine.
        model_bytes: of its file with the weights.
    """

    kind: str
    same: int
    bleu: float
    sentences_per_second: float
    model_bytes: int


def measure_engine(
    config: Config,
    step: int,
    sources: list[str],
    references: list[str],
    ours: list[str],
    kinds: list[Quantization | None],
) -> list[EngineFigures]:
    """Export the run with each kind of weights, and translate with CTranslate2.

    The engine gets one thread for each core of this process, as many batches at once.

    Args:
        config: the run's, with the beam to be used.
        step: of which checkpoint.
        sources: of a split.
        references: of it.
        ours: our translations.
        kinds: of weights; None: float32.
    """
    require("ctranslate2")
    import ctranslate2

    tokenizers = load_tokenizers(config.run.uri)
    source, target = tokenizers["source"], tokenizers["target"]
    scorer = Scorer(references, target, bleu_tokenize=config.search.bleu_tokenize)
    found = []
    for kind in kinds:
        with temporary_folder("dist_embed-bench-") as folder:
            model = Path(folder) / "model"
            export_ctranslate2(config.run.uri, model, step=step, quantization=kind)
            size = (model / "model.bin").stat().st_size
            engine = ctranslate2.Translator(
                str(model), device="cpu", inter_threads=len(os.sched_getaffinity(0)),
                intra_threads=1, compute_type=kind or "float32",
            )  # fmt: skip
            started = time.perf_counter()  # from text to text, as ours
            tokens = [[source.token(i) for i in ids] for ids in source.encode(sources)]
            results = engine.translate_batch(
                tokens, beam_size=config.search.beam, length_penalty=config.search.length_penalty,
                max_batch_size=config.search.batch_tokens, batch_type="tokens",
                max_input_length=config.search.max_source_tokens,
            )  # fmt: skip
            ids = [[target.id_of(t) or 0 for t in result.hypotheses[0]] for result in results]
            written = target.decode(ids)
            seconds = time.perf_counter() - started
            del engine
        found.append(
            EngineFigures(
                kind or "float32",
                sum(a == b for a, b in zip(ours, written, strict=True)),
                scorer.score(target.decode(ids, unknown=scorer.unknown)).bleu,
                len(sources) / seconds,
                size,
            )
        )
    return found
