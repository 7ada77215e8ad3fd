"""Words and vectors as the files that TensorBoard's embedding projector reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.vectors.word_list import COUNTED, as_cell


def projector_files(
    words: Sequence[str], counts: NDArray[np.int64], vectors: Tensor, name: str
) -> dict[str, str]:
    """What TensorBoard's projector reads, by file name: vectors, words with counts, and where."""
    rows = ["\t".join(map(str, row)) for row in vectors.float().numpy()]
    lines = [
        f"{as_cell(word)}\t{count}" for word, count in zip(words, counts.tolist(), strict=True)
    ]
    tensor = {"tensor_name": name, "metadata_path": "metadata.tsv", "tensor_path": "vectors.tsv"}
    inside = "\n".join(f"  {key}: {json.dumps(value)}" for key, value in tensor.items())
    return {
        "vectors.tsv": "\n".join(rows) + "\n",
        "metadata.tsv": f"{COUNTED}\n" + "\n".join(lines) + "\n",
        "projector_config.pbtxt": f"embeddings {{\n{inside}\n}}\n",
    }
