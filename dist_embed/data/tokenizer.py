"""Text to ids and back, through the Hugging Face `tokenizers` library.

Every tokenizer starts with the same four special tokens; after them ids are ordered by frequency in
the training text, most frequent first. Decoding gives back the text in its form (`text_form`) where
it has no unknown tokens, nor the mark U+2581, which stands for a space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from dist_embed.data.settings import Form, Pieces
from dist_embed.data.text_form import Lowercase, steps
from dist_embed.errors import UserError

PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPACE = "▁"  # U+2581
SPECIAL_TOKENS = ["<pad>", "<unk>", "<s>", "</s>"]


class Tokenizer:
    """A trained tokenizer, stored as the library's ``tokenizer.json``.

    Attributes:
        on_disk: whether its words are mapped, and take no memory of the process.
    """

    on_disk = False

    def __init__(self, inner: HFTokenizer) -> None:
        self._inner = inner
        # Text that looks like a special token is text. Not stored by the library.
        inner.encode_special_tokens = True

    @classmethod
    def train(
        cls,
        texts: Iterator[str],
        kind: Literal["bpe", "unigram"],
        *,
        vocab_size: int,
        min_count: int,
        lowercase: Lowercase,
        form: Form = "none",
    ) -> Tokenizer:
        """Learn pieces of words from a stream of sentences.

        Args:
            texts: sentences.
            kind: ``bpe`` (Sennrich et al. 2016, arXiv 1508.07909) or ``unigram`` (Kudo 2018, arXiv
                1804.10959).
            vocab_size: upper bound, special tokens included. Where a text has more characters,
                ``bpe`` leaves the rarest out.
            min_count: rarer pairs are left out (not used by ``unigram``).
            lowercase: lowercase all text first.
            form: what all text is brought to.

        Raises UserError where ``unigram`` needs more than ``vocab_size`` for the characters alone.
        """
        unknown = SPECIAL_TOKENS[UNKNOWN]
        trainer: Any
        if kind == "bpe":
            inner = HFTokenizer(models.BPE(unk_token=unknown))
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size, min_frequency=min_count, special_tokens=SPECIAL_TOKENS,
                # Without it every character gets an id, whatever the bound.
                limit_alphabet=vocab_size - len(SPECIAL_TOKENS), show_progress=False,
            )  # fmt: skip
        else:
            inner = HFTokenizer(models.Unigram())
            trainer = trainers.UnigramTrainer(
                vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, unk_token=unknown,
                show_progress=False,
            )  # fmt: skip
        _set_text_path(inner, form, lowercase, split_punctuation=False)
        too_small = (
            f"tokenizer.vocab_size: {vocab_size} is not allowed with tokenizer.kind={kind} for "
            "this text: its characters alone are more"
        )
        try:
            inner.train_from_iterator(texts, trainer)
        except Exception as exc:  # the library's errors have no type of their own
            if "not large enough to contain all chars" in str(exc):
                raise UserError(too_small) from None
            raise
        if kind == "unigram":
            # Its special tokens are pieces with the best score of all: text would match them.
            description = json.loads(inner.to_str())
            for place in range(len(SPECIAL_TOKENS)):
                description["model"]["vocab"][place][1] = -1000.0
            inner = HFTokenizer.from_str(json.dumps(description, ensure_ascii=False))
            if inner.get_vocab_size() > vocab_size:
                raise UserError(too_small)
        return cls(inner)

    @classmethod
    def from_words(
        cls,
        words: list[str],
        *,
        lowercase: Lowercase,
        split_punctuation: bool,
        form: Form = "none",
        pieces: Pieces = "none",
    ) -> Tokenizer:
        """The ``word`` tokenizer whose ids are the special tokens and then ``words``, in order.

        Args:
            words: distinct, and as `split` makes them. None reads like a special token: it begins
                with U+2581, or ``split_punctuation`` has parted the letters from the brackets.
            lowercase: lowercase all text first.
            split_punctuation: make each punctuation mark a token of its own.
            form: what all text is brought to.
            pieces: what text has been cut into already: what stands between two spaces is a token,
                with its mark, and decoding puts words together. Goes with no split punctuation.
        """
        tokens = [*SPECIAL_TOKENS, *words]
        vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
        inner = HFTokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[UNKNOWN]))
        inner.add_special_tokens(SPECIAL_TOKENS)
        _set_text_path(inner, form, lowercase, split_punctuation, pieces)
        return cls(inner)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read what `to_json` wrote."""
        return cls(HFTokenizer.from_str(text))

    @classmethod
    def from_file(cls, content: bytes) -> Tokenizer:
        """Read a file of what `to_json` wrote; it may hold hundreds of MiB, and is not copied."""
        tokenizer = cls(HFTokenizer.from_buffer(content))
        tokenizer.json_digest = hashlib.sha256(content).hexdigest()
        return tokenizer

    def __reduce__(self) -> tuple[object, ...]:
        return Tokenizer.from_json, (self.to_json(),)

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._inner.to_str()

    @cached_property
    def json_digest(self) -> str:
        """SHA-256, in hex, of the file that it was read from, or else of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def size(self) -> int:
        """V, special tokens included."""
        return int(self._inner.get_vocab_size())

    def tokens(self) -> list[str]:
        """The token of every id."""
        ids = self._inner.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def column(self) -> pa.Array:
        """The token of every id, as an array."""
        return pa.array(self.tokens(), pa.string())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens in the order of their ids, in hex."""
        return hashlib.sha256("\0".join(self.tokens()).encode()).hexdigest()

    @cached_property
    def form(self) -> Form:
        """What it brings text to."""
        found = self.normalized("\t\ufb01")
        return "nfkc" if found == "fi" else "nfc" if found == "\ufb01" else "none"

    @cached_property
    def lowercase(self) -> Lowercase:
        """Whether it lowercases all text."""
        found = self.normalized("ΑΣ")
        return "letters" if found == "ασ" else found == "ας"

    def normalized(self, text: str) -> str:
        """The text in this tokenizer's form, in lower case where it makes that."""
        found = str(self._inner.normalizer.normalize_str(text))
        return found.removeprefix(self.mark)

    @cached_property
    def mark(self) -> str:
        """What it puts before a text and for each space: U+2581, or nothing where text is cut into
        pieces already.
        """
        return SPACE if self._inner.normalizer.normalize_str("a") == f"{SPACE}a" else ""

    @cached_property
    def pieces(self) -> Pieces:
        """What text has been cut into before it comes here."""
        if self.mark:
            return "none"
        return "subword-nmt" if self.join(["a@@", "b"]) == "ab" else "sentencepiece"

    def uncut(self, texts: list[str]) -> list[str]:
        """``texts`` with their pieces put together, as decoding does; as they are where they have
        not been cut.
        """
        return texts if self.mark else [self.join(self.split(text)) for text in texts]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each sentence, without special tokens."""
        encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_hashed(self, texts: list[str], num_buckets: int) -> list[list[int]]:
        """Like `encode`, with V + hash(word) mod ``num_buckets`` for every unknown word.

        For kind ``word`` only. The hash does not depend on process or machine.
        """
        sentences = self.encode(texts)
        for text, ids in zip(texts, sentences, strict=True):
            if UNKNOWN in ids:
                for place, word in enumerate(self.split(text)):
                    if ids[place] == UNKNOWN:
                        ids[place] = self.hashed(word, num_buckets)
        return sentences

    def hashed(self, word: str, num_buckets: int) -> int:
        """The id of an unknown word as `split` gives it: V + hash(word) mod ``num_buckets``."""
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        return self.size + int.from_bytes(digest, "little") % num_buckets

    def split(self, text: str) -> list[str]:
        """The words of a sentence as the tokenizer sees them, known or not; kind ``word`` only.

        One for each id of `encode`; a word with a space before it begins with the mark U+2581.
        """
        normal = self._inner.normalizer.normalize_str(text)
        return [word for word, _ in self._inner.pre_tokenizer.pre_tokenize_str(normal)]

    def join(self, words: list[str]) -> str:
        """The text of words as `split` and `tokens` give them."""
        return str(self._inner.decoder.decode(words))

    def token(self, i: int) -> str:
        """The token of one id."""
        return str(self._inner.id_to_token(i))

    def tokens_of(self, ids: range) -> list[str]:
        """The tokens of some ids."""
        return [self.token(i) for i in ids]

    def id_of(self, token: str) -> int | None:
        """The id of one token, with its mark; None where there is none."""
        found: int | None = self._inner.token_to_id(token)
        return found

    @property
    def knows_words(self) -> bool:
        """Whether a token is a word: each part that `split` finds is one token or unknown."""
        is_list = isinstance(self._inner.model, models.WordLevel)
        return is_list and self.pieces != "sentencepiece"

    def ids_of(self, tokens: list[str]) -> list[int]:
        """The id of each token, `UNKNOWN` where it has none."""
        return [UNKNOWN if i is None else i for i in map(self._inner.token_to_id, tokens)]

    def ids_of_column(self, tokens: pa.Array) -> NDArray[np.int32]:
        """Like `ids_of`, of an array."""
        return np.array(self.ids_of(tokens.to_pylist()), dtype=np.int32)

    def decode(self, ids: list[list[int]], *, unknown: str = SPECIAL_TOKENS[UNKNOWN]) -> list[str]:
        """The sentence of each list of ids. What is unknown shows as ``unknown``; of kind ``word``
        it is a word of its own.
        """
        drop = {PAD, START, END}
        kept = [[i for i in sentence if i not in drop] for sentence in ids]
        texts: list[str] = self._inner.decode_batch(kept, skip_special_tokens=False)
        part = self.unknown_part(unknown)
        for place, sentence in enumerate(kept):
            if UNKNOWN in sentence:
                parts = [part if i == UNKNOWN else self.token(i) for i in sentence]
                texts[place] = self.join(parts)
        return texts

    def unknown_part(self, unknown: str) -> str:
        """What `join` gets for what is unknown, to show as ``unknown``."""
        # The space before an unknown word went with it; without one the word before would not be
        # itself any more.
        return SPACE + unknown if self.knows_words else unknown

    def ordered_by(self, counts: list[int]) -> Tokenizer:
        """The same tokenizer with ids ordered by ``counts`` (of each present id), highest first.

        Special tokens keep the first places; equal counts are ordered by token.
        """
        num_special = len(SPECIAL_TOKENS)
        tokens = self.tokens()
        rest = sorted(range(num_special, self.size), key=lambda i: (-counts[i], tokens[i]))
        new_id = {old: new for new, old in enumerate([*range(num_special), *rest])}
        description = json.loads(self._inner.to_str())
        vocabulary = description["model"]["vocab"]
        if isinstance(vocabulary, dict):  # WordLevel, BPE
            renumbered: Any = dict(
                sorted(((t, new_id[i]) for t, i in vocabulary.items()), key=lambda x: x[1])
            )
        else:  # Unigram: a list of [piece, score], the place is the id
            renumbered = [vocabulary[old] for old in new_id]
        description["model"]["vocab"] = renumbered
        return Tokenizer.from_json(json.dumps(description, ensure_ascii=False))


def _set_text_path(
    inner: HFTokenizer,
    form: Form,
    lowercase: Lowercase,
    split_punctuation: bool,
    pieces: Pieces = "none",
) -> None:
    """What comes before the model (normalizer, splitting) and after it (decoder).

    `stretches` relies on it: but for the mark before the text, nothing looks beyond a blank.
    """
    if pieces != "none":
        _set_path_of_pieces(inner, steps(form, lowercase=lowercase), pieces)
        return
    # The mark is put before the text by a normalizer: Metaspace's own "always" leaves it out
    # where the text begins with a space, which decoding would then lose.
    path = [*steps(form, lowercase=lowercase), normalizers.Prepend(SPACE)]
    inner.normalizer = normalizers.Sequence(path) if len(path) > 1 else path[0]
    spaces = pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.pre_tokenizer = (
        pre_tokenizers.Sequence([spaces, pre_tokenizers.Punctuation("isolated")])
        if split_punctuation
        else spaces
    )
    inner.decoder = decoders.Metaspace(prepend_scheme="always")


def _set_path_of_pieces(inner: HFTokenizer, path: list[Any], pieces: Pieces) -> None:
    # What reads like a special token is text here too, and gets the mark that no such token has.
    special = "|".join(SPECIAL_TOKENS)
    path.append(normalizers.Replace(Regex(f"(?<![^ ])(?=({special})(?![^ ]))"), SPACE))
    inner.normalizer = normalizers.Sequence(path)
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.decoder = (
        decoders.Metaspace(prepend_scheme="always")
        if pieces == "sentencepiece"
        else decoders.Sequence(
            [
                decoders.Replace(Regex(f"^{SPACE}(?=.)"), ""),
                decoders.Replace(Regex("$"), " "),
                decoders.Fuse(),
                decoders.Replace("@@ ", ""),
                decoders.Replace(Regex(" $"), ""),
            ]
        )
    )
