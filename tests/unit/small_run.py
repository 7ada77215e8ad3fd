"""A run's folder with a checkpoint whose vectors a test chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.state import LiveTensor
from dist_embed.checkpoint.write import Description
from dist_embed.config.load import config_from_dict, config_to_yaml
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.data.tokenizer_files import tokenizer_name
from dist_embed.embedding.row_order import RowOrder
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.parallel.group import Group
from dist_embed.run.folder import tokenizer_digests
from tests.checkpoints import write_checkpoint

ONE = Group(0, 1, 1, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]


def word_tokenizer(words: list[str], **path: Any) -> Tokenizer:
    path = {"lowercase": False, "split_punctuation": False} | path
    return Tokenizer.from_words([SPACE + word for word in words], **path)


def small_run(
    folder: Path,
    tokenizers: dict[str, Tokenizer],
    vectors: dict[str, Tensor],
    *,
    share: Any = "decoder",
    dense: dict[str, Tensor] | None = None,
    settings: dict[str, Any] | None = None,
) -> str:
    """Write a run.

    Args:
        folder: where; is made.
        tokenizers: of both sides.
        vectors: by table the vectors in the order of ids; more than words where some are hashed.
        share: which roles use one table.
        dense: the model's parameters.
        settings: sections of the configuration.
    """
    run = str(folder / "run")
    width = next(iter(vectors.values())).shape[1]
    chosen = settings or {}
    values = {
        "run": {"uri": run},
        "data": {"synthetic": {}, "uri": f"{run}/data"},
        "train": {"max_steps": 1},
        **chosen,
        "embedding": {"width": width},
        "model": {"share_embeddings": share, **chosen.get("model", {})},
    }
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in (dense or {}).items()}
    assert set(vectors) == set(TABLE_OF_ROLE[share].values())
    for table, by_id in vectors.items():
        saved = torch.empty_like(by_id)
        saved[RowOrder(len(by_id)).rows_of(torch.arange(len(by_id)))] = by_id
        tensors[f"table.{table}.weight"] = saved
    store = open_checkpoints(run)
    infos = {name: LiveTensor.whole(data).info for name, data in tensors.items()}
    multipliers = {table: RowOrder(len(by_id)).multiplier for table, by_id in vectors.items()}
    known = [tokenizer_digests(side, tokenizer) for side, tokenizer in tokenizers.items()]
    scalars = {name: digest() for digests in known for name, digest in digests.items()}
    write_checkpoint(
        store, Description(5, "", infos, multipliers, json.dumps(scalars)),
        [Rows(name, 0, data) for name, data in tensors.items()], chunk_bytes=4000,
    )  # fmt: skip
    for side, tokenizer in tokenizers.items():
        (folder / "run" / tokenizer_name(side)).write_text(tokenizer.to_json(), encoding="utf-8")
    (folder / "run" / "config.yaml").write_text(config_to_yaml(config_from_dict(values)))
    return run
