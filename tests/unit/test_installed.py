"""Without a package that not every installation has, one line names what brings it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import _registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from dist_embed.bench.table_export import measure_table_export
from dist_embed.cli.main import main
from dist_embed.cluster.launch import launch
from dist_embed.config.load import load_config
from dist_embed.errors import StorageError, UserError
from dist_embed.explore.similarity import similarity_agreement
from dist_embed.export.ctranslate2_model import export_ctranslate2
from dist_embed.installed import CHOSEN_BY_SETUP, EXTRAS, MissingPackage, require
from dist_embed.observe.plot import check_plot_path
from dist_embed.storage.clients import filesystem
from dist_embed.study.summary import p_value
from dist_embed.training.tasks import Train
from tests.unit.run_apart import run_apart
from tests.unit.statements import statements

pytestmark = pytest.mark.timeout(400)  # one test waits for all programs, one after the other
ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where a package is installed under another name than it is imported by, or with another one.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn", "yaml": "pyyaml", "pydantic_core": "pydantic", "grpc": "ray",
    "requests": "ray",
}  # fmt: skip


def one_way(name: str) -> str:
    return name.lower().replace("_", "-")


def names(requirements: list[str]) -> set[str]:
    return {one_way(re.split(r"[\[<>=; ]", text)[0]) for text in requirements}


def distribution(package: str) -> str:
    return one_way(DISTRIBUTIONS.get(package, package))


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


def test_every_package_that_is_imported_is_brought_by_something() -> None:
    imported = {
        name.split(".")[0]
        for path in (ROOT / "dist_embed").rglob("*.py")
        for node in statements(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    others = imported - sys.stdlib_module_names - {"dist_embed", *CHOSEN_BY_SETUP, *EXTRAS}
    others.remove("typing_extensions")  # for mypy alone
    assert {distribution(name) for name in others} <= names(PROJECT["dependencies"])


def test_extras_bring_what_they_are_named_for() -> None:
    for package, extra in EXTRAS.items():
        assert distribution(package) in names(PROJECT["optional-dependencies"][extra])


def test_nothing_that_pip_brings_brings_torch() -> None:
    extras = PROJECT["optional-dependencies"].values()
    brought = names(PROJECT["dependencies"]).union(*map(names, extras))
    assert not brought & {distribution(package) for package in CHOSEN_BY_SETUP}


def test_set_up_installs_what_tests_and_the_first_command_need() -> None:
    found = re.search(r'-e "\.\[(.*?)\]"', (ROOT / "launch" / "setup.sh").read_text())
    assert found
    assert set(found[1].split(",")) == {"ray", "plots", "export", "completion", "dev"}
    text = (ROOT / "launch" / "constraints" / "common.txt").read_text()
    pinned = names([line for line in text.splitlines() if "==" in line])
    wanted = [PROJECT["dependencies"]]
    wanted += [PROJECT["optional-dependencies"][extra] for extra in found[1].split(",")]
    assert set().union(*map(names, wanted)) <= pinned


def use_similarity() -> None:
    similarity_agreement(None, "nowhere")  # type: ignore[arg-type]


def use_ray() -> None:
    config = load_config("configs/quickstart.yaml", [])
    sizes = {"source": 100, "target": 100}
    launch(Train(), config, vocabulary_size=sizes, on_event=print, launcher="ray")


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("matplotlib", lambda: check_plot_path("map.svg")),
        ("scipy", lambda: p_value([1, 2], [3, 4])),
        ("scipy", use_similarity),
        ("ctranslate2", lambda: export_ctranslate2("x", Path("new"), step=None, quantization=None)),
        ("safetensors", lambda: measure_table_export(
            "x", num_rows=1, width=1, parts=1, rounds=1, say=print)),
        ("ray", use_ray),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named(
    package: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    without(monkeypatch, package)
    with pytest.raises(UserError) as caught:
        use()
    extra = EXTRAS[package]
    assert str(caught.value) == (
        f"{package} is not installed: it comes with dist_embed's extra `{extra}` "
        f"(pip install '.[{extra}]' in dist_embed's folder)"
    )


@pytest.mark.parametrize(("url", "package"), [("gs://a/b", "gcsfs"), ("az://a/b", "adlfs")])
def test_a_store_names_the_extra_of_its_client(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, package)
    # Which knows the client where another test of this process has used it.
    monkeypatch.delitem(_registry, url.partition("://")[0], raising=False)
    with pytest.raises(StorageError) as caught:
        filesystem(url)
    assert str(caught.value).startswith(f"cannot open '{url}': {package} is not installed: ")
    assert f"pip install '.[{EXTRAS[package]}]'" in str(caught.value)


def test_without_plots_a_study_trains_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    without(monkeypatch, "scipy")
    assert main(["study", "configs/studies/width.yaml"]) == 2
    assert capsys.readouterr().err.startswith("dist-embed: scipy is not installed: ")


BLOCKED = """
import sys
for package in {packages!r}:
    sys.modules[package] = None
"""
COMMAND = """
from dist_embed.cli.main import main
sys.exit(main({arguments!r}))
"""
FROM_A_SCRIPT = """
from dist_embed import UserError, evaluate, load_config, train, translate
config = load_config("configs/quickstart.yaml", ["run.uri=/nowhere/at/all"])
def import_tables():
    from dist_embed import ShardedTables

for use in (
    import_tables,
    lambda: train(config),
    lambda: evaluate("/nowhere/at/all"),
    lambda: translate(config, ["one line"]),
):
    try:
        use()
    except UserError as exc:
        print(exc)
"""
TRAIN = ["train", "configs/quickstart.yaml", "run.uri=/nowhere/at/all"]
NEIGHBORS = ["neighbors", "x", "house"]
# What runs, and the packages that are not there.
WITHOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": (COMMAND.format(arguments=TRAIN), CHOSEN_BY_SETUP),
    "neighbors": (COMMAND.format(arguments=NEIGHBORS), CHOSEN_BY_SETUP),
    "a script": (FROM_A_SCRIPT, CHOSEN_BY_SETUP),
    "config show": (
        COMMAND.format(arguments=["config", "show", "configs/quickstart.yaml"]),
        (*CHOSEN_BY_SETUP, *EXTRAS),
    ),
    "study --help": (
        COMMAND.format(arguments=["study", "--help"]), (*CHOSEN_BY_SETUP, *EXTRAS),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, subprocess.CompletedProcess[str]]:
    """How each ended where packages are missing. Those of the base are imported before."""
    programs = [BLOCKED.format(packages=packages) + code for code, packages in WITHOUT.values()]
    imports = "import fsspec, numpy, omegaconf, pydantic, yaml"
    ended = run_apart(imports, programs, tmp_path_factory.mktemp("done"))
    return dict(zip(WITHOUT, ended, strict=True))


@pytest.mark.parametrize("command", ["train", "neighbors"])
def test_without_torch_one_line_names_the_set_up(
    done: dict[str, subprocess.CompletedProcess[str]], command: str
) -> None:
    assert done[command].returncode == 2
    (line,) = done[command].stderr.splitlines()
    assert re.match(r"dist-embed: \w+ is not installed: `bash launch/setup.sh`", line)


def test_without_torch_a_script_gets_an_error_that_names_the_set_up(
    done: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    assert done["a script"].returncode == 0, done["a script"].stderr
    lines = done["a script"].stdout.splitlines()
    assert len(lines) == 4
    assert all(re.match(r"\w+ is not installed: `bash launch/setup.sh`", line) for line in lines)


@pytest.mark.parametrize("command", ["config show", "study --help"])
def test_what_needs_nothing_but_the_base_runs_with_it_alone(
    done: dict[str, subprocess.CompletedProcess[str]], command: str
) -> None:
    assert done[command].returncode == 0, done[command].stderr


def test_a_package_that_is_broken_is_not_called_missing(tmp_path: Path) -> None:
    broken = tmp_path / "matplotlib"
    broken.mkdir()
    (broken / "__init__.py").write_text("import needed_by_matplotlib\n")
    code = (
        "from dist_embed.installed import missing_package, require\n"
        "require('matplotlib')\n"
        "try:\n"
        "    import matplotlib\n"
        "except ImportError as exc:\n"
        "    print(missing_package(exc), exc.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert done.stdout == "None needed_by_matplotlib\n"


def test_the_first_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("json", "torch")
    without(monkeypatch, "ray", "scipy")
    with pytest.raises(MissingPackage, match="scipy is not installed"):
        require("json", "scipy", "ray")
