from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dist_embed.storage.json_text import Count, as_kind, from_json


@dataclass(frozen=True)
class File:
    size_bytes: Count
    sha256: str


@dataclass(frozen=True)
class Index:
    parts: Count
    files: tuple[File, ...] = ()
    names: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, b'{"a":' * 100_000, "1" * 5000, b"\xff", "", "{'a': 1}", b"\0"]
)
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+") as told:
        from_json(text)
    assert "\n" not in str(told.value)


def test_json_becomes_dataclasses() -> None:
    values = {"parts": 1, "files": [{"size_bytes": 3, "sha256": "ab"}], "names": {"a": "b"}}
    assert as_kind(Index, values) == Index(1, (File(3, "ab"),), {"a": "b"})


@pytest.mark.parametrize(
    ("values", "said"),
    [({}, "parts: {}: "), ({"parts": -1}, "parts: -1: "), ({"parts": 10**40}, "parts: 1000"),
     ({"parts": "x" * 1000}, "parts: 'xxx"), ({"parts": 1, "files": [5]}, "files.0: 5: "),
     ({"parts": 1, "names": {"a": []}}, r"names.a: \[\]: "), ([], r"the whole: \[\]: "),
     # What a later version may write, and what Python would take for another type.
     ({"parts": 1, "whole": True}, "whole: not known"),
     ({"parts": 1, "files": [{"size_bytes": 3, "sha256": "", "parity": 1}]}, "parity: not known"),
     ({"parts": "1"}, "parts: '1': "), ({"parts": True}, "parts: True: ")],
)  # fmt: skip
def test_the_key_that_does_not_fit_is_named(values: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as told:
        as_kind(Index, values)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300
