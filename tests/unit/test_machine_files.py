from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from dist_embed.errors import UserError
from dist_embed.planning import load_machine, machine_from_yaml, shipped_machines
from tests.unit.planned import GPUS, MACHINE, machine

# What `bench calibrate` and `bench plan` write above all of a machine's figures.
MEASURED = re.compile(
    r"# \d+ cores of .*\. All figures measured by calibrate:\n"
    r"# dist-embed bench (calibrate|plan) .*, \d{4}-\d\d-\d\d\n"
)


def test_machines_that_come_with_the_package_can_be_read() -> None:
    assert set(shipped_machines()) >= {"8xh100", "8xh200", "8xa100", "cpu"}
    for name in shipped_machines():
        assert load_machine(name).name == name


def test_every_figure_has_its_source() -> None:
    for name in shipped_machines():
        text = (files("dist_embed.planning") / "machines" / f"{name}.yaml").read_text()
        if MEASURED.match(text):
            assert load_machine(name).exchanges
            continue
        assert "measured by calibrate" not in text
        source = ""
        for line in text.splitlines():
            if line and line[0] not in "# -":
                source = ""  # a list's is that of its key
            source = line.partition("#")[2] or source
            figure = line.partition(":")[2].partition("#")[0].strip()
            if any(letter.isdigit() for letter in figure) and not line.startswith("name"):
                assert source.strip(), f"{name}: {line}"


def test_a_file_of_the_user_is_read_and_numbers_may_have_exponents(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MACHINE.replace("memory_gb_s: 1", "memory_gb_s: 2e1"))
    assert load_machine(str(path)).memory_gb_s == 20


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory_gb_s: 1\n", "", "memory_gb_s: missing"),
        ("memory_gb_s: 1\n", "memory_gb_s: -1\n", "memory_gb_s: -1"),
        ("memory_gb_s: 1\n", "memory_gb_s: fast\n", "memory_gb_s: 'fast'"),
        ("memory_gb_s: 1\n", "memory_gb_s: .nan\n", "memory_gb_s: nan"),
        ("memory_gb_s: 1\n", "memory_gb_s: 1\nmemory_gbs: 1\n", "did you mean 'memory_gb_s'"),
        ("cores: 64", "cores: 64\nfactors: {exact: {encoder: {work: 2.0}}}\nrest: 0.1",
         "factors, rest: not allowed any more"),
        ("gflops: 1}", "gflops: 0}", "products.0.gflops: 0"),
        ("{type: fp32, inner: 64, gflops: 1}", "", "products: []"),
        ("device: cpu", "device: tpu", "device: 'tpu'"),
        ("device: cpu", "device: cuda", "device_memory_gib: missing"),
        ("device: cpu", "device: cuda\ndevice_memory_gib: 9", "host_link_gb_s: missing"),
        ("cores: 64", "cores: 64\nworkers_per_node: 8", "between_nodes: missing"),
        (MACHINE, "[1, 2]", "mapping"),
        (MACHINE, "a: [", "not valid YAML"),
        (MACHINE, "7", "mapping"),
    ],
)  # fmt: skip
def test_figures_that_cannot_be_are_refused_by_name(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        machine_from_yaml(MACHINE.replace(old, new), "mine.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("mine.yaml: ")
    assert "\n" not in str(caught.value) or "YAML" in said


def test_an_unknown_machine_is_told_with_those_that_are_there() -> None:
    with pytest.raises(UserError, match=r"'9xb200' is neither a file nor one of 8xa100, 8xh100"):
        load_machine("9xb200")


def test_figures_between_measured_ones_lie_between() -> None:
    products = "[{type: fp32, inner: 64, gflops: 10}, {type: fp32, inner: 256, gflops: 30}]"
    found = machine(MACHINE.replace("[{type: fp32, inner: 64, gflops: 1}]", products))
    assert found.flops("fp32", 128) == pytest.approx(20e9)
    assert found.flops("fp32", 8) == 10e9
    assert found.flops("fp32", 10_000) == 30e9
    assert found.flops("bf16", 64) == 10e9  # there are none of that type


def test_nodes_have_as_many_workers_as_they_hold() -> None:
    gpus = machine(GPUS)
    assert [gpus.nodes(workers) for workers in (1, 8, 9, 64)] == [1, 1, 2, 8]
    assert gpus.workers_of_node(4) == 4
    assert machine().nodes(1000) == 1
