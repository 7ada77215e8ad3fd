"""What data are prepared from: corpora of the user's, or generated ones."""

from __future__ import annotations

from collections.abc import Callable

from dist_embed.config.schema import Config
from dist_embed.data.corpus import ParallelText
from dist_embed.data.languages.inflected import InflectedLanguage
from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.settings import CorpusSection, InflectedSection, SyntheticSection
from dist_embed.data.token_shards import SIDES
from dist_embed.observe.events import Watch
from dist_embed.storage import uri as storage


def given_corpora(config: Config) -> dict[str, ParallelText]:
    """The corpora that are files of the user's."""
    found = {
        "train": config.data.train,
        "validation": config.data.validation,
        "test": config.data.test,
    }
    return {name: parallel_text(c) for name, c in found.items() if c is not None}


def parallel_text(corpus: CorpusSection) -> ParallelText:
    """What is to be read for a section."""

    def files(value: str | list[str] | None) -> tuple[str, ...]:
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)

    return ParallelText(
        files(corpus.source),
        files(corpus.target),
        files(corpus.pairs),
        (corpus.source_column, corpus.target_column),
        corpus.quoting,
        corpus.wrong_rows == "skip",
        corpus.max_line_bytes,
    )


def generated_corpora(
    wanted: SyntheticSection | InflectedSection,
    folder: str,
    say: Callable[[str], None],
    watch: Watch,
) -> dict[str, ParallelText]:
    """Write the generated corpora as text files, where a user can look at them."""
    say(f"generating {wanted.sentences:,} synthetic sentence pairs")
    stems = (wanted.nouns, wanted.verbs, wanted.adjectives)
    language: SyntheticLanguage | InflectedLanguage = (
        InflectedLanguage(*stems, exponent=wanted.exponent, seed=wanted.seed)
        if isinstance(wanted, InflectedSection)
        else SyntheticLanguage(*stems, wanted.seed)
    )
    sizes = {"train": wanted.sentences, "validation": wanted.held_out, "test": wanted.held_out}
    corpora = {}
    for name, count in sizes.items():
        uris = [storage.join(folder, "text", f"{name}.{side}.txt") for side in SIDES]
        with (
            storage.whole_file(uris[0], follow=False) as left,
            storage.whole_file(uris[1], follow=False) as right,
        ):
            pairs = language.pairs(count, name, wanted.seed)
            for source, target in watch(f"generating {name}", pairs):
                left.write(f"{source}\n".encode())
                right.write(f"{target}\n".encode())
        corpora[name] = ParallelText((uris[0],), (uris[1],))
    return corpora
