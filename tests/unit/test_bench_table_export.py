"""What `dist-embed bench table-export` measures: that all ways do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dist_embed.bench import table_export
from dist_embed.checkpoint import by_id
from dist_embed.checkpoint.export import export_checkpoint
from dist_embed.errors import RunFailed


def measure(folder: Path) -> dict[str, Any]:
    said: list[str] = []
    found = table_export.measure_table_export(
        str(folder), num_rows=3000, width=8, parts=3, rounds=2, say=said.append
    )
    assert [line.split(":")[0].strip() for line in said] == [*found["ways"], *found["ways"]]
    return found


def test_every_way_is_measured_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (table_export, by_id):
        monkeypatch.setattr(module, "STRIP_BYTES", 10_000)
    monkeypatch.setattr(by_id, "BUCKET_BYTES", 20_000)
    found = measure(tmp_path)
    assert found["table_bytes"] == 4 * 3000 * 8
    assert list(found["ways"]) == [
        "read and proven", "written", "export", "export, no cache", "part 3 of 3"
    ]  # fmt: skip
    for way, one in found["ways"].items():
        assert {len(values) for values in one.values()} == {2}
        assert min(one["seconds"]) > 0
        assert (min(one["written_bytes"]) > 0) == (way != "read and proven")


def test_an_export_of_other_rows_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*args: Any, ids: range, **more: Any) -> Any:
        return export_checkpoint(*args, ids=range(1, len(ids)), **more)

    monkeypatch.setattr(table_export, "export_checkpoint", other)
    with pytest.raises(RunFailed, match="row 0 of the export is not that of id 0"):
        measure(tmp_path)
