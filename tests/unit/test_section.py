"""What is known of a key, by its marks and those of the sections that it lies in."""

from __future__ import annotations

from typing import Annotated

import pytest

from dist_embed.errors import ConfigError
from dist_embed.section import (
    EXPERT,
    EXPERT_IN_SCHEMA,
    MAY_CHANGE,
    NO_RESULT,
    NOT_PREPARED,
    Known,
    Later,
    PositiveInt,
    Section,
    keys_marked,
    known_keys,
)


class Inner(Section):
    """Inside."""

    plain: int = 1
    place: Annotated[PositiveInt | None, NO_RESULT, EXPERT] = None
    new: Annotated[str, Later("old")] = "now"


class Root(Section):
    """The whole."""

    one: Inner | None = None
    two: Annotated[Inner, MAY_CHANGE] = Inner()
    number: int = 3


NONE: frozenset[object] = frozenset()
PLACE = frozenset({NO_RESULT, MAY_CHANGE, NOT_PREPARED, EXPERT})


def test_keys_have_the_marks_of_their_sections_too() -> None:
    assert known_keys(Root) == {
        "one": Known(NONE, None), "one.plain": Known(NONE, None), "one.place": Known(PLACE, None),
        "one.new": Known(NONE, Later("old")),
        "two": Known(frozenset({MAY_CHANGE}), None),
        "two.plain": Known(frozenset({MAY_CHANGE}), None), "two.place": Known(PLACE, None),
        "two.new": Known(frozenset({MAY_CHANGE}), Later("old")),
        "number": Known(NONE, None),
    }  # fmt: skip
    assert keys_marked(Root, EXPERT) == {"one.place", "two.place"}


@pytest.mark.parametrize(("key", "value", "found"), [
    ("one.new", "old", True), ("one.new", "now", False), ("one.plain", 1, False),
])  # fmt: skip
def test_what_came_later_is_as_before_with_the_value_of_before(
    key: str, value: object, found: bool
) -> None:
    assert known_keys(Root)[key].as_before(value) == found


def test_marks_change_neither_types_nor_defaults_and_editors_are_told_of_experts_keys() -> None:
    assert Inner(place=2).place == 2
    with pytest.raises(ConfigError, match=r"^Inner: place: 0 is not allowed: .* greater than 0; "):
        Inner(place=0)
    properties = Root.model_json_schema()["$defs"]["Inner"]["properties"]
    assert [key for key in properties if EXPERT_IN_SCHEMA in properties[key]] == ["place"]
