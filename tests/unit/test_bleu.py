"""What sacrebleu's tokenizers need beside it."""

from __future__ import annotations

import socket
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from urllib.error import URLError

import pytest
import sacrebleu
from sacrebleu.tokenizers import tokenizer_spm

from dist_embed.errors import UserError
from dist_embed.model.settings import BleuTokenizer
from dist_embed.training.bleu import DOWNLOAD_SECONDS, bleu_with


def test_those_that_sacrebleu_has_can_be_chosen() -> None:
    assert set(get_args(BleuTokenizer)) == set(sacrebleu.BLEU.TOKENIZERS)


@pytest.mark.parametrize(
    ("tokenize", "package", "brings"),
    [("ja-mecab", "MeCab", r"sacrebleu\[ja\]"), ("ko-mecab", "mecab_ko", r"sacrebleu\[ko\]"),
     ("flores200", "sentencepiece", "sentencepiece"), ("spm", "sentencepiece", "sentencepiece")],
)  # fmt: skip
def test_a_missing_package_is_named(
    tokenize: str, package: str, brings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.training.bleu.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, package, raising=False)
    told = f"^search.bleu_tokenize={tokenize}: {package} is not installed: pip install '{brings}'$"
    with pytest.raises(UserError, match=told):
        bleu_with(tokenize)


@pytest.mark.parametrize(
    "error", [URLError("no route\nto host"), TimeoutError("timed out"), SystemExit(1)]
)
def test_a_download_that_fails_is_one_line(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    def fail(url: str) -> Any:
        limits.append(socket.getdefaulttimeout())
        raise error

    pieces: Any = SimpleNamespace(SentencePieceProcessor=lambda: None)
    monkeypatch.setitem(sys.modules, "sentencepiece", pieces)
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(UserError, match=r"^search\.bleu_tokenize=flores200: .*") as told:
        bleu_with("flores200")
    assert "\n" not in str(told.value)
    assert limits == [DOWNLOAD_SECONDS]
    assert socket.getdefaulttimeout() is None
