"""A trained run used: evaluated on a split, or translating, on one of its workers."""

from __future__ import annotations

import math
from functools import partial

from dist_embed.checkpoint.load import load_chosen
from dist_embed.checkpoint.of_tables import live_tensors, row_multipliers
from dist_embed.checkpoint.state import TrainingState
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.errors import UserError
from dist_embed.parallel.errors import all_or_none
from dist_embed.run.data import (
    data_of_all,
    digests_of_tokenizers,
    vocabularies,
)
from dist_embed.run.folder import (
    check_vocabularies,
)
from dist_embed.training.assemble import (
    TranslationModel,
    build_translation_model,
    build_translator,
)
from dist_embed.training.evaluate import (
    against_exact,
    evaluate_translations,
    exact_loss,
)
from dist_embed.training.results import AgainstExact, Evaluation, Translations
from dist_embed.training.search_choice import search_choice
from dist_embed.training.tasks import Evaluate, Translate
from dist_embed.training.translation import TooLongError, Translator
from dist_embed.training.worker import Context


def evaluate_task(context: Context, asked: Evaluate) -> Evaluation:
    """Loss and translation quality of a run's checkpoint on a split. Collective."""
    config, split = context.config, asked.split
    data = data_of_all(config, context.group, asked.data_folder)
    data_uri = data.folder_uri
    with all_or_none(context.group):
        data.held_out(split, config.data.uri)
        if context.group.is_first:
            check_vocabularies(config.run.uri, data)
            if told := data.not_proven(config.data.uri):
                context.reporter.line(told)
        tokenizers = load_tokenizers(config.run.uri)
    translation_model, step = _load_for_inference(context, tokenizers, asked.step)
    loss = exact_loss(translation_model, data_uri, data, split, config.train.batch_tokens)
    quality = evaluate_translations(
        build_translator(config, translation_model, tokenizers, context.reporter.line),
        data_uri, data, split,
        bleu_tokenize=config.search.bleu_tokenize, say=context.reporter.line,
    )  # fmt: skip
    compared: AgainstExact | None = None
    if asked.against_exact and search_choice(config, translation_model.shard.num_rows).frequent:
        among_all = config.search.model_copy(update={"candidates": 0})
        exact = config.model_copy(update={"search": among_all})
        compared = against_exact(
            build_translator(exact, translation_model, tokenizers), quality, data_uri, data, split,
            bleu_tokenize=config.search.bleu_tokenize,
        )  # fmt: skip
    training_loss: float | None = None
    if asked.training_tokens:
        training_loss = exact_loss(
            translation_model, data_uri, data, "train", config.train.batch_tokens,
            at_least=asked.training_tokens,
        )  # fmt: skip
    return Evaluation(
        data_folder=data_uri,
        split=split,
        step=step,
        loss=loss,
        training_loss=training_loss,
        perplexity=math.exp(min(loss, 700.0)),
        bleu=quality.bleu,
        chrf=quality.chrf,
        bleu_signature=quality.signature,
        against_exact=compared,
        sentences=quality.sentences,
        sentences_per_second=quality.sentences / quality.seconds,
        translations=quality.translations,
        scored=quality.scored,
    )


def translate_task(context: Context, asked: Translate) -> Translations:
    """Translations of some lines by a run's checkpoint. Collective."""
    translator, step = load_translator(context, asked.step)
    try:
        written = translator.written(asked.lines)
    except TooLongError as exc:
        raise UserError(f"line {exc.place + 1:,}: {exc}") from None
    if cut := [place + 1 for place, one in enumerate(written) if one.cut]:
        context.reporter.line(context.config.search.told_of_cut(len(cut), cut[0]))
    return Translations(step, [one.shown for one in written])


def load_translator(context: Context, step: int | None) -> tuple[Translator, int]:
    """What translates by a run's checkpoint, and its step. ``step``: which; None: the best one.

    Collective.
    """
    with all_or_none(context.group):
        tokenizers = load_tokenizers(context.config.run.uri)
    translation_model, step = _load_for_inference(context, tokenizers, step)
    say = context.reporter.line
    return build_translator(context.config, translation_model, tokenizers, say), step


def _load_for_inference(
    context: Context, tokenizers: dict[str, Tokenizer], wanted: int | None
) -> tuple[TranslationModel, int]:
    """The model of the wanted checkpoint, and its step. Collective."""
    config = context.config
    vocabulary_size = {side: tokenizer.size for side, tokenizer in tokenizers.items()}
    # Its rows come from the checkpoint: none is drawn.
    translation_model = build_translation_model(
        config, vocabulary_size, context.group, training=False, initial_scale=0.0
    )
    dense = {
        f"model.{name}": p.data for name, p in translation_model.transformer.named_parameters()
    }
    state = TrainingState(
        group=context.group,
        step=0,
        tensors=live_tensors(translation_model.lookup, dense, optimizer_state=False),
        row_multipliers=row_multipliers(translation_model.lookup),
        must_equal=vocabularies(partial(digests_of_tokenizers, tokenizers), context.group),
        before_reading=translation_model.lookup.before_reading,
        after_writing=translation_model.lookup.after_writing,
    )
    step = load_chosen(
        config.run.uri, wanted, state, context.reporter.line,
        in_place=config.checkpoint.saving == "in_place",
    )  # fmt: skip
    return translation_model, step
