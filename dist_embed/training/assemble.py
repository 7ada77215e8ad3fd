"""From a configuration to tables, model, output layer and search: the parts that training,
evaluation and translation share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_embed.config.schema import Config
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.embedding.memory import beside_tables_bytes
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.tables import STATELESS
from dist_embed.errors import UserError
from dist_embed.model.batch_negatives import WordShares
from dist_embed.model.candidates import CandidateWords
from dist_embed.model.next_words import ExactWords, NextWords
from dist_embed.model.output import OutputShard
from dist_embed.model.output_layer import ExactSoftmax, OutputLayer, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler, Sampler, UnigramSampler
from dist_embed.model.search import Searcher
from dist_embed.model.transformer import Transformer
from dist_embed.model.translation_tables import rows_of_role, translation_tables
from dist_embed.model.unknown_words import UnknownWords
from dist_embed.parallel.collectives import least_over_workers
from dist_embed.parallel.device import memory_bytes, resolve_dtype
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.training.needs import output_needs
from dist_embed.training.rates import own_rates
from dist_embed.training.samples import samples_of_a_step
from dist_embed.training.search_choice import search_choice
from dist_embed.training.translation import Encode, Translator


@dataclass(frozen=True)
class TranslationModel:
    """The whole model of one worker.

    Attributes:
        lookup: the row-sharded tables.
        transformer: the replicated part.
        shard: how the output layer is sharded.
        compute_dtype: type of matrix products in training.
    """

    lookup: ShardedTables
    transformer: Transformer
    shard: OutputShard
    compute_dtype: torch.dtype

    @property
    def group(self) -> Group:
        """This worker and its peers."""
        return self.lookup.group


def build_translation_model(
    config: Config,
    vocabulary_size: dict[str, int],
    group: Group,
    *,
    training: bool = True,
    initial_scale: float | None = None,
) -> TranslationModel:
    """Tables and model with fresh values that depend on the seed alone. Collective.

    Without ``training`` the tables have no optimizer's state, which may be larger than they are,
    and the exact layer's is one like the others. ``initial_scale``: standard deviation of the rows;
    None: √(1/D).
    """
    embedding, model = config.embedding, config.model
    dtype = resolve_dtype(config.train.precision, group.device)
    device_bytes = None
    if group.device.type == "cuda":
        device_bytes = least_over_workers(memory_bytes(group.device), group)
    needs = partial(
        output_needs,
        config,
        vocabulary_size,
        narrow_products=dtype != torch.float32,
        device_bytes=device_bytes,
        num_workers=group.num_workers,
    )
    output = needs(training=training)
    lookup = ShardedTables(
        translation_tables(
            rows_of_role(vocabulary_size, config.tokenizer.oov_buckets),
            embedding.width,
            model.share_embeddings,
            trained_whole=training and output.exact,
            # Fresh rows of √(1/D): they are multiplied by √D on the way in (Vaswani et al. 2017,
            # section 3.4).
            initial_scale=initial_scale,
            own_rates=own_rates(config) if training else None,
        ),
        group,
        optimizer=embedding.optimizer if training else STATELESS,
        learning_rate=embedding.learning_rate,
        eps=embedding.eps,
        seed=config.run.seed,
        memory=embedding.memory,
        weights=embedding.weights,
        exchange=embedding.exchange,
        step_bytes=beside_tables_bytes(output, group.num_workers, training=training, copied=True),
        configured=True,
    )
    transformer = _fresh_transformer(config).to(group.device)
    table = lookup.table_of["output"]
    shard = OutputShard(
        group,
        lookup.shards[table].first_row,
        lookup.specs[table].num_rows,
        output.block_bytes,
        dtype,
        needs(training=False).block_bytes,
    )
    return TranslationModel(lookup, transformer, shard, dtype)


def _fresh_transformer(config: Config) -> Transformer:
    """With values that depend on the seed alone."""
    model = config.model
    torch.manual_seed(config.run.seed)
    return Transformer(
        embedding_width=config.embedding.width,
        width=model.width,
        feed_forward=model.feed_forward,
        heads=model.heads,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
    )


def build_output(
    config: Config,
    translation_model: TranslationModel,
    read_counts: Callable[[], NDArray[np.int64]],
    read_predicted: Callable[[], NDArray[np.int64]],
) -> OutputLayer:
    """The output layer that training uses.

    Args:
        config: the run's.
        translation_model: tables and model.
        read_counts: gives [V] how often each id of the target side occurs in the training data;
            called where the sampler needs it.
        read_predicted: gives [V] how often each is to be predicted, end marks too; called where
            right answers are negatives.

    Raises:
        UserError: as many samples as words, or more.
    """
    model, num_words = config.model, translation_model.shard.num_rows
    lookup, shard = translation_model.lookup, translation_model.shard
    if model.output == "exact":
        return ExactSoftmax(lookup, "output", shard)
    samples = samples_of_a_step(config, num_words)
    if model.num_samples != "auto" and samples >= num_words:
        raise UserError(
            f"model.num_samples: {samples} is not allowed: the vocabulary has "
            f"{num_words} words. Take fewer samples, or model.output=exact"
        )
    sampler: Sampler = (
        UnigramSampler(read_counts(), model.sampler_power, samples)
        if model.sampler == "unigram"
        else LogUniformSampler(num_words, samples)
    )
    shares = WordShares(read_predicted()) if model.batch_negatives else None
    return SampledSoftmax(
        lookup, "output", sampler, seed=config.run.seed, shard=shard, shares=shares
    )


def build_translator(
    config: Config,
    translation_model: TranslationModel,
    tokenizers: dict[str, Tokenizer],
    say: Callable[[str], None] = lambda line: None,
) -> Translator:
    """What translates texts with the translator, always in float32. Collective.

    Args:
        config: the run's.
        translation_model: tables and model.
        tokenizers: of both sides.
        say: takes lines about the search, and about a lexicon of before.

    Raises:
        UserError: the search asks for a lexicon, and the run's folder has none.
    """
    search, lookup = config.search, translation_model.lookup
    choice = search_choice(config, translation_model.shard.num_rows)
    with all_or_none(translation_model.group):
        wanted = choice.frequent or search.replace_unknown == "lexicon"
        lexicon = _open_lexicon(config.run.uri, tokenizers) if wanted else None
        by_frequency = lexicon.frequent_targets() if lexicon and choice.frequent else None
    say(choice.line)
    if choice.frequent and by_frequency is None and config.tokenizer.shared:
        say(
            f"{config.run.uri}: its lexicon was learned before the frequent words of the target "
            "side were listed: search.candidates takes the most frequent words of both sides. "
            "Data prepared anew have such a list"
        )
    exact = translation_model.shard.in_float32()
    words: NextWords = ExactWords(lookup, exact)
    if choice.frequent and lexicon:
        words = CandidateWords(
            lookup, choice.frequent, choice.translations, lexicon.translations,
            exact.block_bytes, by_frequency,
        )  # fmt: skip
    searcher = Searcher(
        translation_model.transformer,
        lookup,
        words,
        search,
    )
    unknown_words = None
    if search.replace_unknown != "no":
        unknown_words = UnknownWords(
            translation_model.transformer, lookup, tokenizers,
            lexicon.translations if lexicon and search.replace_unknown == "lexicon" else None,
            search.batch_tokens,
        )  # fmt: skip
    encode: Encode = tokenizers["source"].encode
    if config.tokenizer.oov_buckets:
        encode = partial(
            tokenizers["source"].encode_hashed, num_buckets=config.tokenizer.oov_buckets
        )
    return Translator(
        translation_model.transformer, translation_model.group, searcher, encode,
        tokenizers["target"], unknown_words, search,
    )  # fmt: skip


def _open_lexicon(run_uri: str, tokenizers: dict[str, Tokenizer]) -> Lexicon:
    try:
        lexicon = Lexicon(run_uri)
    except FileNotFoundError:
        raise UserError(
            f"{run_uri} has no lexicon, which search.candidates and search.replace_unknown="
            "lexicon ask for; train it with data.lexicon_translations=10 or more"
        ) from None
    lexicon.check_tokenizers(tokenizers)
    return lexicon


def build_dense_optimizer(config: Config, transformer: Transformer) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in transformer.parameters() if p.dim() > 1]
    vectors = [p for p in transformer.parameters() if p.dim() <= 1]
    train = config.train
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=1e-9,
        fused=True,
    )


def dense_tensors(module: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Live views of the replicated parameters and of AdamW's state, by name, for a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"model.{name}"] = parameter.data
        state = optimizer.state[parameter]
        if not state:  # before the first step: what AdamW itself would create
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{name}.{key}"] = state[key]
    return tensors
