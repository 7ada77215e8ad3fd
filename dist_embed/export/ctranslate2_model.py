"""A trained translator as a model of the CTranslate2 engine, which translates without PyTorch.

The engine's Transformer is ours: pre-norm, ReLU, vectors, keys and queries scaled by the root of
their width. What it has no place for goes into its matrices: projections between the tables' width
and the model's are multiplied into embeddings and output layer, positions are written out, and a
bias keeps the search from padding and start marks, as ours does. Equal matrices are stored once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dist_embed.config.schema import Config
from dist_embed.data.tokenizer import END, PAD, SPECIAL_TOKENS, START, UNKNOWN
from dist_embed.data.tokenizer_files import tokenizer_name
from dist_embed.embedding.memory import GIB
from dist_embed.errors import UserError
from dist_embed.explore.table import Role, RunTable
from dist_embed.installed import require
from dist_embed.model.transformer import positions
from dist_embed.parallel.machine import available_bytes
from dist_embed.run.folder import read_run_config
from dist_embed.storage.local_file import named
from dist_embed.storage.temporary import temporary_folder
from dist_embed.storage.trials import check_new_file

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerSpec

Rounding = Callable[[Any], tuple[Any, Any]]
Quantization = Literal["int8", "int16", "float16", "bfloat16"]
ROLES: tuple[Role, ...] = get_args(Role)
MAX_POSITIONS = 2048  # tokens of the longest sentence that the engine can read or write
# Of an int8 weight. Processors without VNNI instructions add products of pairs in 16 bits:
# 2 · 255 · 64 just fits, the usual 127 is cut off (docs/decisions/0016-int8-weights.md).
INT8_TOP = 64
_NEVER = -30_000.0  # float16 holds it
SETTINGS_NAME = "translation.json"


def export_ctranslate2(
    run_uri: str, output: Path, *, step: int | None, quantization: Quantization | None
) -> RunTable:
    """Write the model, its vocabularies and both tokenizers into a new folder.

    The folder appears when it is whole. ``translation.json`` in it holds the run's settings of the
    search under the names of ``Translator.translate_batch``.

    Args:
        run_uri: the run's folder or URL.
        output: the folder; must not exist.
        step: of which checkpoint; None: that with the lowest validation loss.
        quantization: of the weights; None: float32. int8: each row of a matrix has a scale.

    Returns the output layer's table. Holds every table in memory, and the engine's matrices beside
    them. Not collective.

    Raises:
        UserError: the engine cannot express this model, or it does not fit into this memory.
    """
    if os.path.exists(output):
        raise UserError(f"output: {str(output)!r} is not allowed: it is there already")
    check_new_file(str(output), "output")
    require("ctranslate2")
    config = read_run_config(run_uri)
    first = RunTable(run_uri, "source", step)  # chooses for all: the run may be saving meanwhile
    tables = {role: RunTable(run_uri, role, first.step) for role in ROLES} | {"source": first}
    _check_expressible(config, tables)
    spec = _spec(config, tables, _int8 if quantization == "int8" else None)
    spec.validate()
    spec.optimize(quantization=None if quantization == "int8" else quantization)
    with named(output), temporary_folder(f".{output.name}.", output.parent) as folder:
        # In it, because the temporary folder itself is closed to others, whatever the umask.
        scratch = Path(folder) / output.name
        scratch.mkdir()
        spec.save(str(scratch))
        for table in (tables["source"], tables["target"]):
            text = table.tokenizer.to_json()
            (scratch / tokenizer_name(table.role)).write_text(text, encoding="utf-8")
        search = config.search
        settings = {
            "beam_size": search.beam,
            "length_penalty": search.length_penalty,
            "max_input_length": min(search.max_source_tokens, MAX_POSITIONS),
            # Ours follows from each sentence's length; the engine has one limit for all.
            "max_decoding_length": min(
                int(search.max_length_ratio * config.data.max_tokens) + 10, MAX_POSITIONS
            ),
        }
        (scratch / SETTINGS_NAME).write_text(json.dumps(settings, indent=1) + "\n")
        scratch.rename(output)
    return tables["output"]


def _check_expressible(config: Config, tables: dict[Role, RunTable]) -> None:
    """Raises UserError for what the engine has no form for, or this machine no room."""
    if config.tokenizer.oov_buckets:
        raise UserError(
            f"{config.run.uri}: unknown source words are hashed to {config.tokenizer.oov_buckets:,}"
            " rows (tokenizer.oov_buckets), which CTranslate2 cannot do; a model trained without "
            "them can be exported"
        )
    width = max(config.model.width, config.embedding.width)
    needed = 2 * 4 * width * sum(table.num_words for table in tables.values())
    there = available_bytes()
    if needed > there:
        words = ", ".join(f"{role} {table.num_words:,}" for role, table in tables.items())
        raise UserError(
            f"{config.run.uri}: CTranslate2 holds every row in one memory and scores every word; "
            f"{words} words of width {width} need about {needed / GIB:.1f} GiB to export, this "
            f"machine has {there / GIB:.1f} GiB available. A vocabulary of this size is translated "
            "by `dist-embed translate`, with search.candidates"
        )


def _spec(
    config: Config, tables: dict[Role, RunTable], rounded: Rounding | None
) -> TransformerSpec:
    from ctranslate2.specs import Activation
    from ctranslate2.specs import TransformerSpec as Spec

    model, dense = config.model, _Dense(tables["output"], rounded)
    spec = Spec.from_config(
        (model.encoder_layers, model.decoder_layers), model.heads, pre_norm=True,
        activation=Activation.RELU,
    )  # fmt: skip
    by_table = {table.table: table for table in tables.values()}
    read = {name: _in_order_of_ids(table) for name, table in by_table.items()}
    matrices = {role: read[table.table] for role, table in tables.items()}
    place = positions(0, MAX_POSITIONS, model.width, torch.device("cpu")).numpy()
    sides: list[tuple[Any, Role]] = [(spec.encoder, "source"), (spec.decoder, "target")]
    for side, role in sides:
        side.position_encodings.encodings = place
        embeddings = side.embeddings[0] if isinstance(side.embeddings, list) else side.embeddings
        side.scale_embeddings = not dense.has(f"{role}_projection.weight")
        dense.matrix(embeddings, dense.into_model(matrices[role], f"{role}_projection"))
    matrix, bias = dense.out_of_model(matrices["output"])
    dense.matrix(spec.decoder.projection, matrix)
    for i in (PAD, START):
        bias[i] = _NEVER
    spec.decoder.projection.bias = bias
    for number, layer in enumerate(spec.encoder.layer):
        dense.attention(layer.self_attention, f"encoder.{number}.attention")
        dense.feed_forward(layer.ffn, f"encoder.{number}")
    for number, layer in enumerate(spec.decoder.layer):
        dense.attention(layer.self_attention, f"decoder.{number}.attention")
        dense.cross(layer.attention, f"decoder.{number}.cross")
        dense.feed_forward(layer.ffn, f"decoder.{number}")
    dense.norm(spec.encoder.layer_norm, "encoder_norm")
    dense.norm(spec.decoder.layer_norm, "decoder_norm")
    spec.register_source_vocabulary(tables["source"].tokenizer.tokens())
    spec.register_target_vocabulary(tables["output"].tokenizer.tokens())
    spec.config.unk_token = SPECIAL_TOKENS[UNKNOWN]
    spec.config.bos_token = spec.config.decoder_start_token = SPECIAL_TOKENS[START]
    spec.config.eos_token = SPECIAL_TOKENS[END]
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = 1e-5  # torch.nn.LayerNorm's
    return spec


class _Dense:
    """The replicated parameters of a checkpoint, put where the engine has them."""

    def __init__(self, table: RunTable, rounded: Rounding | None) -> None:
        self._table = table
        self._rounded = rounded

    def has(self, name: str) -> bool:
        return f"model.{name}" in self._table.manifest.tensors

    def get(self, name: str) -> Tensor:
        return self._table.parameter(f"model.{name}")

    def matrix(self, spec: Any, values: Any) -> None:
        if self._rounded:
            spec.weight, spec.weight_scale = self._rounded(values)
        else:
            spec.weight = values

    def linear(self, spec: Any, name: str) -> None:
        self.matrix(spec, self.get(f"{name}.weight").numpy())
        spec.bias = self.get(f"{name}.bias").numpy()

    def norm(self, spec: Any, name: str) -> None:
        spec.gamma = self.get(f"{name}.weight").numpy()
        spec.beta = self.get(f"{name}.bias").numpy()

    def attention(self, spec: Any, name: str) -> None:
        """Keys, queries and values come from one product in both."""
        self.norm(spec.layer_norm, f"{name}_norm")
        self.linear(spec.linear[0], f"{name}.query_key_value")
        self.linear(spec.linear[1], f"{name}.out")

    def cross(self, spec: Any, name: str) -> None:
        self.norm(spec.layer_norm, f"{name}_norm")
        self.linear(spec.linear[0], f"{name}.query")
        self.linear(spec.linear[1], f"{name}.key_value")
        self.linear(spec.linear[2], f"{name}.out")

    def feed_forward(self, spec: Any, name: str) -> None:
        self.norm(spec.layer_norm, f"{name}.feed_forward_norm")
        self.linear(spec.linear_0, f"{name}.feed_forward.0")
        self.linear(spec.linear_1, f"{name}.feed_forward.3")

    def into_model(self, vectors: Tensor, name: str) -> Any:
        """[V, E] to [V, D]; scaled by √E where they are projected, as the engine scales by √D."""
        if not self.has(f"{name}.weight"):
            return vectors.numpy()
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return torch.addmm(bias, vectors, weight.T, alpha=math.sqrt(vectors.shape[1])).numpy()

    def out_of_model(self, vectors: Tensor) -> tuple[Any, Any]:
        """Matrix [V, D] and bias [V] that give the logits from the decoder's last norm."""
        name = "output_projection"
        if not self.has(f"{name}.weight"):
            return vectors.numpy(), np.zeros(len(vectors), dtype=np.float32)
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return (vectors @ weight).numpy(), (vectors @ bias).numpy()


def _int8(matrix: Any) -> tuple[Any, Any]:
    """Whole numbers and the factor [rows] that each row was multiplied with."""
    highest = np.abs(matrix).max(axis=1)
    scale = INT8_TOP / np.maximum(highest, np.float32(1e-30))  # a row may be zero
    return np.rint(matrix * scale[:, None]).astype(np.int8), scale


def _in_order_of_ids(table: RunTable) -> Tensor:
    """[V, E]."""
    matrix = torch.empty(table.num_words, table.width)
    for ids, vectors in table.strips():
        matrix[ids] = vectors
    return matrix
