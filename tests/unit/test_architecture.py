from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dist_embed"
# A package may import itself, the packages before it, and every package's module `settings`: that
# imports the ground, which are modules, and others of its kind alone.
GROUND = ["errors", "arguments", "installed", "section"]
LAYERS = [
    *GROUND, "storage", "config", "observe", "parallel", "data", "vectors",
    "embedding", "model", "optim", "checkpoint", "run", "training", "explore", "export", "cluster",
    "api", "bench", "study", "cli",
]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES_THAT_RUN_CODE = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_tests(tree: ast.AST) -> list[str]:
    """Imports from a module of tests: what tests share has a module of its own."""
    return [
        f"line {line}: {name}"
        for line, name in imports(tree)
        if name.split(".")[0] == "tests"
        and any(part.startswith("test_") for part in name.split("."))
    ]


def upward_imports(tree: ast.AST, package: str) -> list[str]:
    """Imports of dist_embed that ``package`` may not make."""
    allowed = LAYERS[: LAYERS.index(package) + 1]
    return [
        f"line {line}: {name}"
        for line, name in imports(tree)
        if name.split(".")[0] == "dist_embed"
        and name.split(".")[1] not in allowed
        and name.split(".")[2:3] != ["settings"]
    ]


def code_runners(tree: ast.AST) -> list[str]:
    """Everything in a module by which loaded data could run code."""
    found = [
        f"line {line}: imports {name}"
        for line, name in imports(tree)
        if name.split(".")[0] in MODULES_THAT_RUN_CODE
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            found.append(f"line {node.lineno}: calls {called}")
        arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe = arguments.get("weights_only", "True") != "True"
        if unsafe or (called == "torch.load" and "weights_only" not in arguments):
            found.append(f"line {node.lineno}: {called} without weights_only=True")
    return found


def test_every_package_has_its_layer() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages | set(GROUND) == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_only_to_layers_above(path: Path) -> None:
    # What the ground imports of dist_embed is ground too; so are settings.
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    layer = GROUND[-1] if path.name == "settings.py" or package in GROUND else package
    if layer in LAYERS:
        assert upward_imports(ast.parse(path.read_text()), layer) == []


def test_an_upward_import_is_found() -> None:
    inside_a_function = "def f():\n    from dist_embed.training.step import TrainStep\n"
    assert upward_imports(ast.parse(inside_a_function), "data") == [
        "line 2: dist_embed.training.step.TrainStep"
    ]
    assert upward_imports(ast.parse(inside_a_function), "cli") == []
    of_settings = "from dist_embed.training.settings import TrainSection\n"
    assert upward_imports(ast.parse(of_settings), GROUND[-1]) == []
    assert upward_imports(ast.parse("import dist_embed.storage.uri"), GROUND[-1]) != []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_no_test_imports_from_another(path: Path) -> None:
    assert imported_tests(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [("from tests.unit.test_saver import state_of", 1), ("import tests.unit.test_saver", 1),
     ("def f():\n    from tests.unit import test_saver", 1), ("from tests.checkpoints import x", 0),
     ("from torch.test_case import x", 0)],
)  # fmt: skip
def test_an_import_of_a_test_is_found(code: str, found: int) -> None:
    assert len(imported_tests(ast.parse(code))) == found


def test_only_cluster_imports_ray() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        for _, name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] == "ray"
    }
    assert importers == {"cluster"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=name_of)
def test_init_files_are_empty(path: Path) -> None:
    if path.parent != PACKAGE:  # that one names what the library gives
        assert path.read_text() == ""


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name in ("cli", "study") and "bench" not in path.name],
    ids=name_of,
)
def test_commands_and_studies_use_what_a_script_uses(path: Path) -> None:
    """Functions of `api`, so that both do the same."""
    beside = ("dist_embed.cluster.", "dist_embed.training.tasks", "dist_embed.training.worker",
              "dist_embed.data.preparation.ensure_data")  # fmt: skip
    found = {name for _, name in imports(ast.parse(path.read_text())) if name.startswith(beside)}
    assert found <= {"dist_embed.cluster.launch.cluster_address"}


def test_no_module_is_named_after_nothing() -> None:
    names = {part for path in FILES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_loaded_can_run_code(path: Path) -> None:
    assert code_runners(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import load", "eval('1')", "yaml.load(x)", "torch.load(x)",
     "torch.load(x, weights_only=False)"],
)  # fmt: skip
def test_code_runners_are_found(code: str) -> None:
    assert len(code_runners(ast.parse(code))) == 1


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name_of(path)
        for path in FILES
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("module", "without"),
    [("dist_embed.cluster.launch", "torchrec fbgemm_gpu ray"),
     ("dist_embed.config.load", "torch tokenizers pyarrow numpy"),
     ("dist_embed.cli.main", "torch pydantic fsspec omegaconf tqdm numpy"),
     ("dist_embed.cli.main; dist_embed.cli.main.build_parser()", "torch"),
     ("dist_embed.embedding.memory", "torch"), ("dist_embed.training.needs", "torch"),
     ("dist_embed.data.preparation", "torch"), ("dist_embed.checkpoint.catalogue", "torchrec"),
     ("dist_embed.explore.nearest, dist_embed.export.embeddings", "torchrec fbgemm_gpu")],
)  # fmt: skip
def test_what_starts_quickly_imports_little(module: str, without: str) -> None:
    code = f"import sys, {module}; print(*({set(without.split())} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
