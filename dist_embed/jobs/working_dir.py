"""A folder packed to be sent with a job of Ray, without what its nodes do not want.

As Ray packs it (2.60), but that folders of data and runs stay behind as well, links to folders are
not followed, and packing ends where the job server would refuse what it has become.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

from dist_embed.errors import UserError
from dist_embed.storage.local_file import named

# Of what the job server takes, whatever limit its client tells of (2.60, ray_constants.py:
# DASHBOARD_CLIENT_MAX_SIZE).
LIMIT_BYTES = 100 * 2**20
_EVERYWHERE = {".git", "venv", "__pycache__"}
_AT_TOP = {"runs", "data"}
_PACKAGE = "dist_embed"  # it would come before the one that the nodes have
_BLOCK_BYTES = 2**20


def pack(folder: str, target: Path, *, with_package: bool, but: set[Path]) -> int:
    """Pack ``folder`` without what it leaves out, and what its ``.gitignore`` names; returns bytes.

    Args:
        folder: of files that the job needs.
        target: the file that it becomes, ``….zip``.
        with_package: whether a folder ``dist_embed`` goes with it.
        but: files and folders that stay behind as well, by whatever name they are found.

    Raises UserError where it is no folder, or becomes larger than the job server takes.
    """
    top = Path(folder).absolute()
    left = {os.path.realpath(path) for path in but}
    if not top.is_dir():
        raise UserError(f"--working-dir {folder}: there is no such folder")
    at_top = _AT_TOP if with_package else {*_AT_TOP, _PACKAGE}

    def stays(path: Path) -> bool:
        by_name = path.name in _EVERYWHERE or path.name.startswith(".venv")
        by_place = path.parent == top and path.name in at_top
        return by_name or by_place or os.path.realpath(path) in left

    largest = (0, "")
    with named(target), target.open("wb") as packed, ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        for path in _files(top, stays, []):
            name = str(path.relative_to(top))
            largest = max(largest, (path.stat().st_size, name))
            entry = ZipInfo.from_file(path, name, strict_timestamps=False)
            entry.compress_type = ZIP_DEFLATED
            with path.open("rb") as file, archive.open(entry, "w") as into:
                while block := file.read(_BLOCK_BYTES):
                    into.write(block)
                    if packed.tell() > LIMIT_BYTES:
                        raise _too_large(folder, *largest)
    size = target.stat().st_size
    if size > LIMIT_BYTES:  # with its list of names
        raise _too_large(folder, *largest)
    return size


def _files(
    folder: Path, stays: Callable[[Path], bool], rules: list[Callable[[Path], bool]]
) -> Iterator[Path]:
    rules = [*rules, *get_excludes_from_ignore_files(folder, include_gitignore=True)]
    for path in sorted(folder.iterdir()):
        if stays(path) or any(rule(path) for rule in rules):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path, stays, rules)
        elif path.is_file():
            yield path


def _too_large(folder: str, size: int, name: str) -> UserError:
    return UserError(
        f"--working-dir {folder}: more than {LIMIT_BYTES // 2**20} MiB when packed, which is the "
        f"most that Ray's job server takes. {name!r} has {size / 2**20:.1f} MiB; a .gitignore in "
        "the folder names what stays behind"
    )
