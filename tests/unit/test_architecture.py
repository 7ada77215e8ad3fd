from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.statements import statements

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dist_embed"
# A package may import itself, the packages before it, and every package's module `settings`: that
# imports the ground, which are modules, and others of its kind alone.
GROUND = ["passwords", "errors", "arguments", "installed", "streams", "mistakes", "section"]
LAYERS = [
    *GROUND, "storage", "config", "observe", "parallel", "data", "vectors",
    "embedding", "model", "optim", "checkpoint", "run", "training", "planning", "explore", "export",
    "cluster", "jobs", "api", "bench", "study", "report", "cli",
]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES_THAT_RUN_CODE = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, also inside functions."""
    for node in statements(tree):
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


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Of every file of the package: each is parsed once for all tests."""
    return {path: ast.parse(path.read_text()) for path in FILES}


Find = Callable[[Path, ast.AST], list[str]]


def found_in(trees: dict[Path, ast.Module], find: Find) -> list[str]:
    """What ``find`` finds, with the names of files before it."""
    return [f"{name_of(path)}, {what}" for path, tree in trees.items() for what in find(path, tree)]


def test_imports_point_only_to_layers_above(trees: dict[Path, ast.Module]) -> None:
    def wrong(path: Path, tree: ast.AST) -> list[str]:
        # What the ground imports of dist_embed is ground too; so are settings.
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        layer = GROUND[-1] if path.name == "settings.py" or package in GROUND else package
        return upward_imports(tree, layer) if layer in LAYERS else []

    assert found_in(trees, wrong) == []


def test_an_upward_import_is_found() -> None:
    inside_a_function = "def f():\n    from dist_embed.training.step import TrainStep\n"
    assert upward_imports(ast.parse(inside_a_function), "data") == [
        "line 2: dist_embed.training.step.TrainStep"
    ]
    assert upward_imports(ast.parse(inside_a_function), "cli") == []
    of_settings = "from dist_embed.training.settings import TrainSection\n"
    assert upward_imports(ast.parse(of_settings), GROUND[-1]) == []
    assert upward_imports(ast.parse("import dist_embed.storage.uri"), GROUND[-1]) != []


def test_no_test_imports_from_another() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert Path(__file__) in tests
    found = {name_of(path): imported_tests(ast.parse(path.read_text())) for path in tests}
    assert [name for name, wrong in found.items() if wrong] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [("from tests.unit.test_saver import state_of", 1), ("import tests.unit.test_saver", 1),
     ("def f():\n    from tests.unit import test_saver", 1), ("from tests.checkpoints import x", 0),
     ("try:\n    x\nexcept E:\n    with x:\n        import tests.unit.test_saver", 1),
     ("match x:\n    case 1:\n        import tests.unit.test_saver", 1),
     ("if x:\n    pass\nelse:\n    import tests.unit.test_saver", 1),
     ("from torch.test_case import x", 0)],
)  # fmt: skip
def test_an_import_of_a_test_is_found(code: str, found: int) -> None:
    assert len(imported_tests(ast.parse(code))) == found


def test_only_cluster_and_jobs_import_ray(trees: dict[Path, ast.Module]) -> None:
    importers = {
        name_of(path)
        for path, tree in trees.items()
        for _, name in imports(tree)
        if name.split(".")[0] == "ray"
    }
    in_jobs = {name for name in importers if name.startswith("dist_embed/jobs/")}
    assert in_jobs == {"dist_embed/jobs/ray_server.py", "dist_embed/jobs/working_dir.py"}
    others = importers - in_jobs
    assert others
    assert all(name.startswith("dist_embed/cluster/ray_") for name in others), others


def test_init_files_are_empty() -> None:
    # That of the package names what the library gives, that of planning what its users call.
    full = {path for path in PACKAGE.rglob("__init__.py") if path.read_text()}
    assert full == {PACKAGE / "__init__.py", PACKAGE / "planning" / "__init__.py"}


def test_commands_and_studies_use_what_a_script_uses(trees: dict[Path, ast.Module]) -> None:
    """Functions of `api`, so that both do the same."""
    beside = ("dist_embed.cluster.", "dist_embed.training.tasks", "dist_embed.training.worker",
              "dist_embed.data.preparation.ensure_data")  # fmt: skip

    def wrong(path: Path, tree: ast.AST) -> list[str]:
        if path.parent.name not in ("cli", "study") or "bench" in path.name:
            return []
        found = {name for _, name in imports(tree) if name.startswith(beside)}
        return sorted(found - {"dist_embed.cluster.launch.cluster_address"})

    assert found_in(trees, wrong) == []


def test_no_module_is_named_after_nothing() -> None:
    names = {part for path in FILES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}


def test_nothing_loaded_can_run_code(trees: dict[Path, ast.Module]) -> None:
    assert found_in(trees, lambda path, tree: code_runners(tree)) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import load", "eval('1')", "yaml.load(x)", "torch.load(x)",
     "torch.load(x, weights_only=False)"],
)  # fmt: skip
def test_code_runners_are_found(code: str) -> None:
    assert len(code_runners(ast.parse(code))) == 1


def test_every_module_says_what_it_is_for(trees: dict[Path, ast.Module]) -> None:
    silent = [
        name_of(path)
        for path, tree in trees.items()
        if path.name != "__init__.py" and not ast.get_docstring(tree)
    ]
    assert silent == []


# Statements, and what may not have been imported after each. All run in one Python, one after the
# other: so what a statement may not import none before it may.
LITTLE = [
    ("import dist_embed.cli.main", "torch pydantic fsspec omegaconf tqdm numpy"),
    ("import dist_embed.config.load", "torch tokenizers pyarrow numpy"),
    ("dist_embed.cli.main.build_parser()", "torch"),
    ("import dist_embed.embedding.memory", "torch"),
    ("import dist_embed.training.needs", "torch"),
    ("import dist_embed.planning", "torch numpy pyarrow tokenizers"),
    (
        "import dist_embed.jobs.ray_request, dist_embed.jobs.slurm, dist_embed.jobs.kubernetes",
        "torch ray",
    ),
    ("import dist_embed.data.preparation", "torch"),
    ("import dist_embed.report.report", "torch matplotlib tensorboardX"),
    ("import dist_embed.model.translation_tables", "torch torchrec"),
    ("import dist_embed.cluster.launch", "torchrec fbgemm_gpu ray"),
    ("import dist_embed.checkpoint.catalogue", "torchrec"),
    ("dist_embed.open_run", "torchrec fbgemm_gpu ray"),
    ("import dist_embed.cli.explore, dist_embed.explore.nearest", "torchrec fbgemm_gpu ray"),
    ("import dist_embed.export.embeddings", "torchrec fbgemm_gpu"),
    ("import dist_embed.bench.balance, dist_embed.observe.plot", "matplotlib"),
]


def imported_too_much(statements: list[tuple[str, str]]) -> list[str]:
    """What each has imported that it may not have."""
    code = (
        "import sys\n"
        f"for statement, without in {statements!r}:\n"
        "    exec(statement)\n"
        "    for name in without.split():\n"
        "        if name in sys.modules: print(f'{statement}: {name}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_starts_quickly_imports_little() -> None:
    assert imported_too_much(LITTLE) == []


def test_what_is_imported_too_much_is_found() -> None:
    statements = [("import zipfile", "torch"), ("import dist_embed.errors", "torch zipfile")]
    assert imported_too_much(statements) == ["import dist_embed.errors: zipfile"]
