"""What ``import dist_embed`` gives, and what it does not import."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import dist_embed

ROOT = Path(__file__).parents[2]
FILE = ROOT / "dist_embed" / "__init__.py"
NAMES = [name for name in dist_embed.__all__ if name != "__version__"]


def test_importing_it_imports_nothing_that_takes_time() -> None:
    code = (
        "import sys; before = set(sys.modules); import dist_embed; dir(dist_embed)\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    allowed = {"dist_embed", "typing", "_typing", "collections", "__future__"}
    assert set(done.stdout.split()) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    module = f"dist_embed.{dist_embed._MODULE_OF[name]}"
    if "sharded_tables" in module and find_spec(module) is None:
        pytest.skip("not written yet")
    value = getattr(dist_embed, name)
    assert value.__name__ == name
    assert value is getattr(importlib.import_module(module), name)
    assert value.__doc__


def test_type_checkers_see_the_same_names() -> None:
    (block,) = (
        node for node in ast.parse(FILE.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )  # fmt: skip
    seen = {
        alias.name: str(node.module).removeprefix("dist_embed.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == dist_embed._MODULE_OF
    assert set(dist_embed.__all__) == {*seen, "__version__"}
    assert (FILE.parent / "py.typed").exists()


def test_names_are_listed_and_others_refused() -> None:
    assert dist_embed.load_config.__doc__  # with it come packages
    shown = {name for name in dir(dist_embed) if not name.startswith("__")}
    assert {*shown, "__version__"} == {*dist_embed.__all__}
    assert set(dist_embed.__all__) <= set(dir(dist_embed))
    with pytest.raises(AttributeError, match="module 'dist_embed' has no attribute 'trane'"):
        _ = dist_embed.trane  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="trane"):
        exec("from dist_embed import trane")


def test_the_version_is_that_of_the_project() -> None:
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    assert dist_embed.__version__ == found[1]


def test_a_name_stays_what_it_is_after_all_was_imported() -> None:
    """A package of that name would take its place as soon as anything in it is imported."""
    packages = {path.parent.name for path in FILE.parent.glob("*/__init__.py")}
    modules = {path.stem for path in FILE.parent.glob("*.py")}
    assert not {*dist_embed.__all__} & (packages | modules)


def test_it_can_be_imported_where_warnings_are_errors() -> None:
    """FBGEMM warns as it is imported; the user's own deprecations are errors all the same."""
    code = (
        "from dist_embed import Checkpoints, ShardedTables, joined_group\n"
        "import dist_embed, warnings\n"
        "with joined_group() as group:\n"
        "    tables = ShardedTables({'w': dist_embed.Table(9, 4)}, group, optimizer='sgd')\n"
        "    rows = tables.lookup({'w': __import__('torch').tensor([3])})\n"
        "    rows.vectors('w').sum().backward()\n"
        "    rows.backward()\n"
        "try:\n"
        "    warnings.warn('mine', DeprecationWarning)\n"
        "except DeprecationWarning as exc:\n"
        "    print(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    # Nor does PyTorch say on the screen that FBGEMM asks it about tracing.
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", "")


def test_where_the_working_directory_was_removed_it_is_told(tmp_path: Path) -> None:
    """PyTorch would end the process as it is imported."""
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "os.rmdir(os.getcwd())\n"
        "import dist_embed\n"
        "for name in dist_embed.__all__:\n"
        "    try:\n"
        "        getattr(dist_embed, name)\n"
        "        print(name)\n"
        "    except dist_embed.UserError as error:\n"
        "        assert str(error).startswith('the working directory has been removed'), error\n"
        "from dist_embed.cli.main import main\n"
        "print(main(['history', '/tmp/run']))\n"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=gone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "UserError\n__version__\n2\n", done.stderr
    assert done.stderr == (
        "dist-embed: the working directory has been removed: go to another one (cd, in a script "
        "os.chdir)\n"
    )
