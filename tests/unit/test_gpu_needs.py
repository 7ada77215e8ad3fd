"""Which packages a GPU machine must have: for prepared data, local training, the measurements and
the tests there. Whoever brings the packages goes by this list.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRIES = [
    "dist_embed.cli.run", "dist_embed.cli.data", "dist_embed.cli.bench", "dist_embed.cli.main",
    "dist_embed.training.train", "dist_embed.training.inference", "dist_embed.bench.baseline",
    "tests.conftest",
    *(f"tests.gpu.{path.stem}" for path in (ROOT / "tests" / "gpu").glob("*.py")),
]  # fmt: skip
# Behind these a run starts Ray, or something is asked for that is not done there.
CLOSED = (
    "dist_embed.cluster.ray_train", "dist_embed.cluster.ray_tasks", "dist_embed.bench.export",
    "dist_embed.bench.cluster",
    "dist_embed.bench.table_export", "dist_embed.explore", "dist_embed.export", "dist_embed.study",
)  # fmt: skip
NEEDED = {
    "fbgemm_gpu", "fsspec", "hypothesis", "matplotlib", "numpy", "omegaconf", "pyarrow", "pydantic",
    "pydantic_core",
    "pytest", "sacrebleu", "tabulate", "tensorboardX", "tokenizers", "torch", "torchrec", "tqdm",
    "yaml",
}  # fmt: skip

# Imported where a store of theirs, or a shell, is there.
WHERE_ASKED = {"aiohttp", "argcomplete", "s3fs"}


def file_of(module: str) -> Path | None:
    """Of a module of this repository."""
    path = ROOT / Path(*module.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)


def imported(tree: ast.AST) -> list[str]:
    """Dotted names of all that is imported, also in functions, but for types alone."""
    found: list[str] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)):  # no expression imports
            found += imported(node)
    return found


@cache
def imports_of(path: Path) -> list[str]:
    return imported(ast.parse(path.read_text()))


def packages_of(entries: list[str]) -> set[str]:
    """Of others, that these modules import, and those of ours that they import."""
    found: set[str] = set()
    seen: set[Path] = set()
    left = list(entries)
    while left:
        name = left.pop()
        if name.split(".")[0] not in ("dist_embed", "tests"):
            found.add(name.split(".")[0])
            continue
        # The last part may be a module, or something in one.
        path = file_of(name) or file_of(name.rpartition(".")[0])
        if path is None or path in seen or name.startswith(CLOSED):
            continue
        seen.add(path)
        left += imports_of(path)
    return found - sys.stdlib_module_names - {"__future__"}


def test_a_gpu_machine_needs_no_other_packages() -> None:
    assert packages_of(ENTRIES) - WHERE_ASKED == NEEDED


def test_imports_of_functions_count_and_those_for_types_do_not() -> None:
    code = "if TYPE_CHECKING:\n    import a\ndef f():\n    import b.c\n    from d import e\n"
    assert imported(ast.parse(code)) == ["b.c", "d.e"]
    assert imported(ast.parse("try:\n    import a\nexcept E:\n    import b")) == ["a", "b"]


def test_what_is_behind_a_closed_module_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CLOSED", ())
    assert {"ray", "ctranslate2"} <= packages_of(ENTRIES) - NEEDED
