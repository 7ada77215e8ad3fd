"""Whether search looks at all words or at candidate lists, by `search.candidates`."""

from __future__ import annotations

from typing import NamedTuple

from dist_embed.config.schema import Config

# `search.candidates: auto` takes lists above so many words of the target side; that many frequent
# words are in them (Jean et al. 2015, arXiv 1412.2007, section 4, take 15,000 to 30,000).
LISTS_ABOVE = 1_000_000
FREQUENT_WORDS = 30_000


class SearchChoice(NamedTuple):
    """Which words are searched.

    Attributes:
        frequent: K, so many most frequent ones are; 0: all words.
        translations: K', and so many translations of each source word.
        line: for the user, which search it is and why.
    """

    frequent: int
    translations: int
    line: str


def search_choice(config: Config, num_words: int) -> SearchChoice:
    """The search of a run whose target side has ``num_words``."""
    search, kept = config.search, config.data.lexicon_translations
    wanted, translations = search.candidates, search.candidate_translations
    reason = f"search.candidates={wanted}"
    everything = f"search: among all {num_words:,} words, exactly"
    if wanted == "auto":
        translations = min(translations, kept)
        if num_words <= LISTS_ABOVE:
            reason += f" takes candidate lists above {LISTS_ABOVE:,}"
        elif not kept:
            reason += f" takes candidate lists above {LISTS_ABOVE:,} where there is a lexicon: "
            reason += "data.lexicon_translations=10"
        else:
            reason += f": {num_words:,} words, and a lexicon"
        wanted = FREQUENT_WORDS if kept and num_words > LISTS_ABOVE else 0
    elif wanted >= num_words:
        wanted = 0
    if not wanted:
        return SearchChoice(0, 0, f"{everything} ({reason})")
    return SearchChoice(
        wanted,
        translations,
        f"search: among the {wanted:,} most frequent words and up to {translations} translations "
        f"of each source word ({reason})",
    )
