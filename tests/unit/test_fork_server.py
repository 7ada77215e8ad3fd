from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_folder_of_temporary_files_that_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "import tempfile\n"
        f"tempfile.tempdir = {str(folder)!r}\n"
        "from dist_embed.cluster.fork_server import worker_context\n"
        "from dist_embed.config.errors import UserError\n"
        "try:\n"
        "    worker_context('cpu')\n"
        "except UserError as exc:\n"
        "    print(exc)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=True,
    ).stdout  # fmt: skip
    assert f"TMPDIR: {str(folder)!r} is too long" in said
