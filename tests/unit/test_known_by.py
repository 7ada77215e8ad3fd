"""What runs, prepared data and studies that lie on disks are known by never changes: digests of
configurations, as they were when all sections still lay in one module.
"""

from __future__ import annotations

import hashlib
import re
from types import SimpleNamespace
from typing import Any

import pytest

from dist_embed.config.load import config_from_dict, config_to_yaml
from dist_embed.config.renamed import with_old_names
from dist_embed.data.fitting import data_digest
from dist_embed.run.folder import fingerprint
from dist_embed.study import planned as study_planned
from dist_embed.study.planned import _digest

Values = dict[str, Any]
FILES: Values = {"source": "a.en", "target": ["a.de", "b.de"]}
CONFIGURATIONS: dict[str, Values] = {
    "least": {"data": {"synthetic": {}}},
    "generated": {
        "run": {"uri": "s3://bucket/run", "seed": 2**40 + 7},
        "data": {"uri": "s3://bucket/data", "inflected": {"nouns": 77, "exponent": 0.5},
                 "lexicon_translations": 12, "num_processes": 3},
        "tokenizer": {"oov_buckets": 99, "vocab_size": 5000, "shared": False, "normalize": "none"},
        "model": {"output": "sampled", "num_samples": "auto", "batch_negatives": True},
        "search": {"candidates": 500, "replace_unknown": "lexicon", "beam": 2},
        "cluster": {"launcher": "local", "num_workers": 3, "device": "cpu"},
        "checkpoint": {"keep_best": 0, "max_failures": 7, "keep_last": 5},
    },
    "files": {
        "data": {"train": FILES, "validation": {"pairs": "v.tsv", "source_column": "left"},
                 "max_length_ratio": 2.5, "too_long": "cut", "max_sentences": 1000},
        "tokenizer": {"kind": "word", "pieces": "subword-nmt", "split_punctuation": False,
                      "normalize": "nfkc"},
        "cluster": {"launcher": "ray", "address": "10.0.0.1:6379"},
        "train": {"max_steps": 77, "accumulate": 2, "schedule": "cosine", "log_every": 7,
                  "translate_every": 21, "evaluate_every": 11, "precision": "fp32"},
    },
    "tables": {
        "data": {"train": FILES, "uri": "elsewhere"},
        "tokenizer": {"kind": "bpe", "lowercase": True},
        "embedding": {
            "width": 64, "schedule": "linear", "warmup_steps": 9, "memory": "device",
            "tables": {
                "source": {"pretrained": {"uri": "v.npy", "format": "npy", "words": "w.txt",
                                          "match": ["nfc", "digits"], "project": "random"},
                           "learning_rate": 0.25},
                "target": {"freeze_until_step": 5},
                "output": {"freeze": True},
            },
        },
        "model": {"share_embeddings": "none", "width": 96, "logits_block_mib": 4.5},
        "cluster": {"launcher": "local"},
    },
}  # fmt: skip
# Of a run's steps, of its data, of a study's run, and of config.yaml.
KNOWN_BY: dict[str, tuple[str, str, str, str]] = {
    "least": (
        "d626b76f2ac55efaa88860ca533b917e43edb4e667bdc5b7d612d6e9d050b11a", "e3b7de1605e5",
        "92ded7b9", "bc6c3504fefd9ad814f4e99f79af9d0f6fc9278b0e7e96e2d135d014020de56c",
    ),
    "generated": (
        "7707d4553cfa5010f4453fe4bbb1e4e49040ac4f0d5c5f38ca4bf9883ceea774", "6997167af8f3",
        "9cceaf42", "ff4704f0977f0fc4d7461b1cb367b650ee7f2e042122d392e8f3e75f3f2ae4d6",
    ),
    "files": (
        "1e3525835fb5aabb057fc9036f8ff214ebc24922bd13cb164348cd507dedc0dd", "9b85021238e5",
        "f64caccb", "d341271c0b5ff4be7ee896dfc84a6fa54de26e6de161e5ecf333375e7c4379f4",
    ),
    "tables": (
        "212b8d3f24726e01c962d41f4fc4b58c13c4f16b56f06fba33758cb9100c82a1", "5d0100c27543",
        "3b7379df", "c84f9dadc3ede2c2e2368d6dba21bb5d05e7003d979bf8813753d0b8cc915b5f",
    ),
}  # fmt: skip


def known_by(name: str) -> tuple[str, str, str, str]:
    least: Values = {"run": {"uri": "runs/a"}, "train": {"max_steps": 9}}
    config = config_from_dict(least | CONFIGURATIONS[name])
    study: Any = SimpleNamespace(word_vectors=[], folder="runs")
    # Keys that came or were renamed since, and a default that was changed.
    text = re.sub(r"  submit:\n(    .*\n)*", "", config_to_yaml(config))
    text = text.replace("  launcher: auto\n", "  launcher: ray\n")
    text = text.replace("        prefix: ''\n", "")
    text = text.replace(
        "    quoting: auto\n    wrong_rows: refuse\n    max_line_bytes: 1048576\n", ""
    )
    text = text.replace("  words: null\n", "").replace("  neighbors_of: []\n", "")
    text = re.sub("  (replace|hang)_seconds: .*\n", "", text)
    text = text.replace("  max_failures: null\n", "  max_failures: 0\n")
    text = text.replace(
        "  batch_tokens: 2048\n  max_source_tokens: 1024\n  too_long: cut\n",
        "  batch_sentences: 64\n",
    )
    text = text.replace("  saving: behind\n", "  asynchronous: true\n  low_memory: false\n")
    return (
        fingerprint(config), data_digest(config), _digest(study, config),
        hashlib.sha256(text.encode()).hexdigest(),
    )  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_are_known_as_they_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where validations were not saved anyway, a study's run is another one since the best are.
    monkeypatch.setattr(study_planned, "_BEST_IS_SAVED", study_planned.TRAINING)
    assert known_by(name) == KNOWN_BY[name]


@pytest.mark.parametrize(
    ("search", "known_as"),
    [
        ({"batch_sentences": 9}, {"batch_sentences": 9}),
        ({"batch_tokens": 2000, "too_long": "refuse"},
         {"batch_tokens": 2000, "max_source_tokens": 1024, "too_long": "refuse"}),
    ],
)  # fmt: skip
def test_batches_of_a_search_are_known_as_they_were(search: Values, known_as: Values) -> None:
    least: Values = {"run": {"uri": "runs/a"}, "train": {"max_steps": 9}}
    values = config_from_dict(least | CONFIGURATIONS["least"] | {"search": search})
    known = with_old_names(values.model_dump(mode="json"))["search"]
    names = ("batch_sentences", "batch_tokens", "max_source_tokens", "too_long")
    assert {name: known[name] for name in names if name in known} == known_as
