"""Every setting of a run: its type, unit, default and meaning.

The classes are read where a run is assembled, in `dist_embed.train` and `dist_embed.cluster`;
nothing in the layers below takes a configuration object. `dist-embed config schema` prints the JSON
schema made from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Files = str | list[str]


def _no(value: Any) -> Any:
    return "no" if value is False else value


# YAML reads a bare `no` as false.
MaybeNo = BeforeValidator(_no)


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RunSection(Section):
    """Where a run lives and what makes it reproducible."""

    uri: str = Field(min_length=1, description="Folder or fsspec URL that holds the whole run.")
    seed: int = Field(
        1, ge=0, lt=2**64, description="Decides initial values, batch order and dropout."
    )


class CorpusSection(Section):
    """Parallel text: either two aligned lists of files, or files that hold both sides."""

    source: Files | None = Field(
        None, description="Source-side text files (.txt, .gz, .zst; paths, URLs or globs)."
    )
    target: Files | None = Field(None, description="Target-side files, aligned with `source`.")
    pairs: Files | None = Field(
        None, description="Instead: .tsv (may be .gz or .zst) or .parquet files with both sides."
    )
    source_column: str = Field("source", description="Column of `pairs` with the source text.")
    target_column: str = Field("target", description="Column of `pairs` with the target text.")


class SyntheticSection(Section):
    """A generated corpus in which word order and agreement decide the translation."""

    sentences: PositiveInt = Field(20000, description="Training sentence pairs.")
    held_out: PositiveInt = Field(500, description="Validation pairs, and as many test pairs.")
    nouns: PositiveInt = Field(120, description="Noun stems.")
    verbs: PositiveInt = Field(60, description="Verb stems.")
    adjectives: PositiveInt = Field(40, description="Adjective stems.")
    seed: int = Field(1, ge=0, description="Decides lexicon and sentences.")


class InflectedSection(Section):
    """A generated corpus in two languages with many forms of many stems: with these defaults over a
    million words on each side, most of them rare. A stem has one translation that nothing but
    itself tells; its ending and its place follow from the sentence.
    """

    sentences: PositiveInt = Field(1_000_000, description="Training sentence pairs.")
    held_out: PositiveInt = Field(2000, description="Validation pairs, and as many test pairs.")
    nouns: PositiveInt = Field(220_000, description="Noun stems; 10 forms each, 8 in the target.")
    verbs: PositiveInt = Field(60_000, description="Verb stems; 3 forms each, 6 in the target.")
    adjectives: PositiveInt = Field(
        40_000, description="Adjective stems; 2 forms each, 6 in the target."
    )
    exponent: NonNegativeFloat = Field(
        0.8, description="A class's stem number r is drawn with a probability ∝ 1 / r^`exponent`."
    )
    seed: int = Field(1, ge=0, description="Decides lexicon and sentences.")


class DataSection(Section):
    """The corpora and how they are prepared."""

    uri: str = Field(
        "${run.uri}/data", min_length=1, description="Folder or URL of the prepared data."
    )
    synthetic: SyntheticSection | None = Field(
        None, description="Generate the corpora instead of reading train, validation and test."
    )
    inflected: InflectedSection | None = Field(
        None, description="Or generate these, with over a million words on each side."
    )
    train: CorpusSection | None = Field(None, description="Training pairs.")
    validation: CorpusSection | None = Field(
        None, description="Pairs for validation loss and BLEU."
    )
    test: CorpusSection | None = Field(None, description="Held-out pairs for `evaluate`.")
    max_sentences: int = Field(
        0, ge=0, description="Only so many training pairs, the first ones; 0: all."
    )
    max_tokens: Annotated[int, Field(gt=1)] = Field(
        256, description="Longest sentence of a training pair, in tokens of either side."
    )
    too_long: Literal["drop", "cut"] = Field(
        "drop", description="What happens to longer training pairs; both are counted."
    )
    max_length_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        None,
        description="Training pairs are left out, and counted, where one side has more than so "
        "many times the other's tokens; null: none.",
    )
    num_processes: int = Field(
        0, ge=0, description="Processes that count words and encode; 0: one per core."
    )
    shard_sentences: PositiveInt = Field(50_000, description="Sentence pairs per token shard.")
    lexicon_translations: int = Field(
        0,
        ge=0,
        description="Translations per source word in a lexicon learned from the training pairs, "
        "for `search`; 0: no lexicon.",
    )


class TokenizerSection(Section):
    """How text becomes tokens."""

    kind: Literal["word", "bpe", "unigram"] = Field(
        "word", description="`word`: every word its own id; `bpe`, `unigram`: learned pieces."
    )
    vocab_size: Annotated[int, Field(gt=4)] = Field(
        10_000, description="Upper bound of the vocabulary, with its four special tokens."
    )
    min_count: PositiveInt = Field(
        1, description="`word`, `bpe`: rarer words or pairs are left out."
    )
    shared: bool = Field(True, description="One vocabulary for both sides, or one for each.")
    oov_buckets: int = Field(
        0,
        ge=0,
        description="`word`: rows that source words outside the vocabulary are hashed to; 0: all "
        "of them are one word.",
    )
    pieces: Literal["none", "sentencepiece", "subword-nmt"] = Field(
        "none",
        description="`word`: what the text has been cut into already. The pieces with their marks "
        "(▁, @@) are the tokens; translations, and what they are scored with, are put together "
        "again.",
    )
    normalize: Literal["auto", "nfc", "nfkc", "none"] = Field(
        "auto",
        description="What all text is brought to. `nfc`: Unicode's composed letters, and one space "
        "for blanks of any kind and number; `nfkc`: ligatures, full-width and other such letters "
        "as plain ones too; `none`: it stays as it is. `auto`: as the prepared data have it, or "
        "the run where data are prepared again, and else `nfc`.",
    )
    lowercase: bool = Field(False, description="Lowercase all text before anything else.")
    split_punctuation: bool = Field(
        True, description="`word`: make punctuation marks tokens; false for tokenised text."
    )


class PretrainedSection(Section):
    """Vectors that a table's rows start from, where a run starts from scratch."""

    uri: str = Field(min_length=1, description="The file: a path or URL, may be .gz or .zst.")
    format: Literal[
        "auto", "word2vec", "word2vec-bin", "glove", "fasttext-bin", "npy", "safetensors"
    ] = Field(
        "auto",
        description="`word2vec`: text with a header, fastText's .vec too; `glove`: text without. "
        "`auto` looks at the first bytes.",
    )
    words: str | None = Field(
        None, description="`npy`, `safetensors`: the file with the rows' words, one a line."
    )
    tensor: str | None = Field(
        None, description="`safetensors`: which tensor, where it holds more than one matrix."
    )
    match: list[Literal["lowercase", "nfc", "digits"]] = Field(
        [],
        description="What is done to a word of the vocabulary, one after the other, until the file "
        "has it: `lowercase`; `nfc`, Unicode's composed form; `digits`, each becomes 0.",
    )
    missing: Literal["random", "mean", "subword"] = Field(
        "random",
        description="What words outside the file start from: `random` values spread as the vectors "
        "found, their `mean`, or the `subword` vectors of a binary fastText model.",
    )
    project: Annotated[Literal["no", "pca", "random"], MaybeNo] = Field(
        "no", description="How vectors of another width than `embedding.width` are brought to it."
    )
    rescale: bool = Field(
        False,
        description="Multiply all rows by one number, so that their values are as large as those "
        "of fresh rows.",
    )
    min_coverage: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Least share of the running words of the table's side that must be found.",
    )


class TableSection(Section):
    """What one side's table does otherwise than the rest."""

    pretrained: PretrainedSection | None = Field(
        None, description="Start from the vectors of a file."
    )
    freeze: bool = Field(False, description="Leave the rows as they start.")
    freeze_until_step: int = Field(
        0, ge=0, description="Leave the rows as they start for this many steps."
    )
    learning_rate: PositiveFloat | None = Field(
        None, description="Peak rate of this table, instead of `embedding.learning_rate`."
    )


class TablesSection(Section):
    """Settings of single tables, by what they are for; sides that share a table share them."""

    source: TableSection | None = Field(None, description="The encoder's input.")
    target: TableSection | None = Field(None, description="The decoder's input.")
    output: TableSection | None = Field(None, description="The output layer.")


class EmbeddingSection(Section):
    """The row-sharded tables."""

    width: PositiveInt = Field(
        128, description="D, values per row; a multiple of 4, at most 2,048 on a GPU."
    )
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        "rowwise_adagrad", description="Fused into the tables' backward. `adam` needs CUDA."
    )
    learning_rate: PositiveFloat = Field(0.05, description="Peak rate of the tables.")
    schedule: Literal["constant", "inverse_sqrt", "cosine", "linear"] = Field(
        "constant", description="How the tables' rate changes after warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up of the tables' rate.")
    eps: PositiveFloat = Field(1e-8, description="The optimizer's term against division by zero.")
    memory: Literal["auto", "device", "uvm", "uvm_caching"] = Field(
        "auto",
        description="Where the rows lie. `device`: on the GPU, or with the CPU; `uvm`: in host "
        "memory, which the GPU reads; `uvm_caching`: there, with a cache on the GPU; `auto`: "
        "`device` if they fit there on every worker, else `uvm_caching`. `uvm…` need CUDA.",
    )
    weights: Literal["fp32", "fp16"] = Field(
        "fp32",
        description="Type of the rows. `fp16` rounds stochastically and needs CUDA; the "
        "optimizer's state stays fp32. (FBGEMM cannot train bf16 rows.)",
    )
    exchange: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32",
        description="Type in which looked-up vectors and their gradients cross the network; "
        "`fp16` sends the gradients in bf16, for its range. Both need CUDA.",
    )
    tables: TablesSection = Field(TablesSection(), description="Settings of single tables.")


class ModelSection(Section):
    """The translation model."""

    width: PositiveInt = Field(128, description="Width of encoder and decoder; even.")
    feed_forward: PositiveInt = Field(256, description="Inner width of feed-forward layers.")
    heads: PositiveInt = Field(4, description="Attention heads; divides `width`.")
    encoder_layers: PositiveInt = Field(4, description="Encoder layers.")
    decoder_layers: PositiveInt = Field(4, description="Decoder layers.")
    dropout: Probability = Field(
        0.1, description="On embeddings, residuals and feed-forward; rounded to 1/256."
    )
    attention_dropout: Probability = Field(0.0, description="On attention weights.")
    share_embeddings: Literal["none", "decoder", "all"] = Field(
        "decoder", description="Which of source, target and output use one table."
    )
    logits_block_mib: PositiveFloat | Literal["auto"] = Field(
        "auto",
        description="Largest block of logits held at once, MiB per worker. `auto`: 8 on the CPU, "
        "on a GPU by its memory and a worker's rows, from 256 on.",
    )
    output: Literal["exact", "sampled"] = Field(
        "exact",
        description="`exact`: softmax over the vocabulary in every step, refused where a step "
        "would surely take more than a minute; `sampled`: over the right "
        "word and `num_samples` others, at a cost that does not grow with the vocabulary.",
    )
    num_samples: PositiveInt | Literal["auto"] = Field(
        8192,
        description="`sampled`: negatives that all tokens of a step share. `auto`: 8192, and from "
        "4,096 `train.batch_tokens` on more, as their root; at most all words.",
    )
    batch_negatives: bool = Field(
        False,
        description="`sampled`: the right words of a worker's other sentences are negatives too. "
        "They cost no exchange; which ones, depends on the number of workers.",
    )
    sampler: Literal["log_uniform", "unigram"] = Field(
        "log_uniform", description="`sampled`: by rank (Zipf's law), or by count^`sampler_power`."
    )
    sampler_power: Annotated[float, Field(ge=0, le=1)] = Field(
        0.75, description="`unigram`: the power α; 0 draws evenly, 1 by frequency."
    )


class TrainSection(Section):
    """Optimisation of the dense part, and when things happen."""

    max_steps: PositiveInt = Field(
        description="Optimizer steps of the whole run. `cosine` and `linear` schedules end here: a "
        "run that goes on with a larger value takes up the longer schedule where it stands."
    )
    batch_tokens: PositiveInt = Field(
        4096,
        description="Token budget of one global step: the sum over its units, small batches of "
        "sentences of like length, of sentences × longest side, padding included.",
    )
    accumulate: PositiveInt = Field(
        1, description="Micro-batches per worker and step; but for dropout the result is the same."
    )
    learning_rate: PositiveFloat = Field(1e-3, description="Peak rate of the dense part (AdamW).")
    schedule: Literal["constant", "inverse_sqrt", "cosine", "linear"] = Field(
        "inverse_sqrt", description="How the dense rate changes after warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    beta1: Probability = Field(0.9, description="AdamW's decay of the first moment.")
    beta2: Probability = Field(0.98, description="AdamW's decay of the second moment.")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW's decoupled weight decay.")
    label_smoothing: Probability = Field(0.0, description="ε, spread evenly over the vocabulary.")
    clip_norm: NonNegativeFloat = Field(
        0.0,
        description="Largest global gradient norm, dense part and tables together; 0: no limit.",
    )
    max_skipped_steps: PositiveInt = Field(
        20, description="Stop after this many steps in a row with a non-finite loss or gradient."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="`auto`: bf16 where the device multiplies it natively, else fp32."
    )
    log_every: PositiveInt = Field(
        50, description="Steps between two lines of metrics; each validation has one too."
    )
    evaluate_every: PositiveInt = Field(500, description="Steps between two validations.")
    translate_every: int = Field(
        0, ge=0, description="Steps between two translations of the validation set (BLEU); 0: none."
    )


class SearchSection(Section):
    """Beam search and scoring."""

    beam: PositiveInt = Field(5, description="Hypotheses kept per sentence; 1 is greedy.")
    length_penalty: NonNegativeFloat = Field(
        1.0, description="α: hypotheses are ranked by log probability / length^α."
    )
    max_length_ratio: PositiveFloat = Field(
        1.5, description="Longest translation: this × source tokens + 10."
    )
    batch_sentences: PositiveInt = Field(64, description="Sentences searched at once, per worker.")
    candidates: NonNegativeInt | Literal["auto"] = Field(
        "auto",
        description="Search only these many most frequent words of the target side and the likely "
        "translations of the sentence's words, at a cost that does not grow with the vocabulary; "
        "0: all words. `auto`: 30,000 where the target side has over a million words and there is "
        "a lexicon (`data.lexicon_translations`), else all.",
    )
    candidate_translations: PositiveInt = Field(
        10,
        description="`candidates`: translations of each source word, from the lexicon; with "
        "`auto` as many as that has, if it has fewer.",
    )
    replace_unknown: Annotated[Literal["no", "copy", "lexicon"], MaybeNo] = Field(
        "no",
        description="What `<unk>` in a translation becomes: the source word it looks at (`copy`), "
        "or that word's translation where the lexicon has one (`lexicon`).",
    )
    bleu_tokenize: Literal["13a", "intl", "char", "none"] = Field(
        "13a",
        description="sacrebleu's tokenizer; `none` for text that is tokenised. Whichever it is, an "
        "unknown word counts as one token that matches nothing, and both sides are compared in the "
        "run's form of text.",
    )


class CheckpointSection(Section):
    """When checkpoints are written and which are kept."""

    every_steps: int = Field(
        500,
        ge=0,
        description="A checkpoint is due in steps divisible by this; 0: by minutes alone. The last "
        "step always is saved, and with both 0 no other. One that is due while another is being "
        "written is made once that has ended, of the step that is done by then.",
    )
    every_minutes: NonNegativeFloat = Field(
        0.0,
        description="A checkpoint is due too so long after training went on from the one before, "
        "by the clock of worker 0; 0: by steps alone.",
    )
    keep_last: PositiveInt = Field(3, description="Newest checkpoints kept.")
    keep_best: int = Field(
        1,
        ge=0,
        description="Checkpoints with the lowest validation loss kept. Only one saved at a step "
        "that was validated has a loss: let `train.evaluate_every` be a multiple of `every_steps`.",
    )
    keep_every: int = Field(
        0, ge=0, description="Checkpoints of steps divisible by this are kept for ever; 0: none."
    )
    asynchronous: bool = Field(
        True, description="Write behind training, from a copy in host memory; else training waits."
    )
    low_memory: bool = Field(
        False,
        description="Without a copy of the tables: `asynchronous` must be false, and a load reads "
        "everything twice, first to prove it.",
    )
    max_failures: int = Field(
        2, ge=0, description="Failed saves in a row that a run goes on with; a full disk stops it."
    )
    retry_seconds: NonNegativeFloat = Field(
        120.0, description="How long a call that an object store fails is repeated."
    )
    timeout_seconds: PositiveFloat = Field(
        1800.0,
        description="Within which every worker must have written its part, once worker 0 has, "
        "seconds. A run that waits for a save gives up when no chunk of it was written for twice "
        "as long; one that trains meanwhile begins to wait after so long without one.",
    )
    drain_seconds: NonNegativeFloat = Field(
        60.0,
        description="How long a run that is stopped or fails waits for its last checkpoint. "
        "With the local launcher not after a worker was killed: the others have 10 s then.",
    )
    leftover_hours: NonNegativeFloat = Field(
        24.0, description="Age at which what unfinished saves left behind is removed."
    )


class ClusterSection(Section):
    """The workers and who starts them."""

    launcher: Literal["ray", "local"] = Field(
        "ray", description="`ray`: Ray Train, here or on a cluster; `local`: plain processes."
    )
    num_workers: PositiveInt = Field(2, description="Worker processes; one GPU each on CUDA.")
    address: str | None = Field(
        None, description="Ray cluster to use; else RAY_ADDRESS; else a local Ray is started."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: CUDA if there.")
    threads_per_worker: int = Field(0, ge=0, description="CPU threads; 0: cores / workers.")
    timeout_seconds: PositiveFloat = Field(
        600.0,
        description="Longest wait, seconds: of an exchange between workers, on the CPU five times "
        "as long for a worker that is lost as they join; under Ray for free "
        "slots; under torchrun for worker 0 to prepare the data.",
    )
    max_failures: int = Field(
        0,
        ge=0,
        description="Ray only: times failed workers are started again.",
    )


class Config(Section):
    """One run, whole."""

    run: RunSection
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    embedding: EmbeddingSection = EmbeddingSection()
    model: ModelSection = ModelSection()
    train: TrainSection
    search: SearchSection = SearchSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cluster: ClusterSection = ClusterSection()
