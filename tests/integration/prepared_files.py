"""The files of prepared data in a folder."""

from __future__ import annotations

from pathlib import Path

from dist_embed.data.prepared_folder import prepared_folder


def prepared_files(data: Path) -> dict[str, bytes]:
    """By name."""
    folder = Path(prepared_folder(str(data)))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
