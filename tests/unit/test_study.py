from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dist_embed.config.errors import ConfigError
from dist_embed.study import one_hot
from dist_embed.study.one_hot import (
    WAYS,
    OneHotFigures,
    draw_one_hot,
    one_hot_table,
    run_one_hot,
)
from dist_embed.study.plan import (
    OneHotStudy,
    TrainingStudy,
    combinations,
    load_study,
    overrides_of,
)
from dist_embed.study.report import draw_study, study_page, summaries
from dist_embed.study.run import Outcome, config_of

ROOT = Path(__file__).parents[2]
STUDY: dict[str, Any] = {
    "title": "Starts", "question": "Does a start help?", "folder": "/f", "base": "base.yaml",
    "seeds": [1, 2], "set": {"train.max_steps": 5, "model.width": 16},
    "factors": [
        {"name": "pairs", "levels": [
            {"name": "1 k", "set": {"data.max_sentences": 1000}, "x": 1000},
            {"name": "5 k", "set": {"model.width": 32}, "x": 5000}]},
        {"name": "start", "levels": [
            {"name": "random"}, {"name": "vectors", "set": {"a.b": "c"}}]},
    ],
    "measures": ["bleu", "validation_perplexity", "steps_to_reference"],
    "reference": {"factor": "start", "level": "random"},
    "plot": {"x": "pairs", "label": "pairs", "measure": "bleu", "lines": "start",
             "logarithmic": True},
    "expectations": [
        {"text": "Vectors help", "measure": "bleu", "better": {"pairs": "1 k", "start": "vectors"},
         "worse": {"pairs": "1 k", "start": "random"}},
        {"text": "And later", "measure": "validation_perplexity",
         "better": {"pairs": "5 k", "start": "vectors"},
         "worse": {"pairs": "5 k", "start": "random"}},
        {"text": "Equal", "measure": "chrf", "better": {"pairs": "5 k", "start": "vectors"},
         "worse": {"pairs": "1 k", "start": "vectors"}},
    ],
}  # fmt: skip
MACHINE = {"cores": 2, "memory_gib": 23.0, "device": "a CPU", "versions": {"torch": "9"}}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    return str(path)


def study(folder: Path) -> TrainingStudy:
    found = load_study(written(folder))
    assert isinstance(found, TrainingStudy)
    return found


def outcome(pairs: str, start: str, seed: int, bleu: float, losses: list[float]) -> Outcome:
    measures = {"bleu": bleu, "validation_perplexity": math.exp(min(losses)), "chrf": 50.0,
                "gap": 0.1, "parameters": 10, "tokens_per_second": 5.0, "best_step": 3}  # fmt: skip
    steps = [(10 * n, loss) for n, loss in enumerate(losses, start=1)]
    return Outcome({"pairs": pairs, "start": start}, seed, "f", measures, steps)


OUTCOMES = [
    outcome("1 k", "random", 1, 10.0, [3.0, 2.0, 1.0]),
    outcome("1 k", "random", 2, 12.0, [3.0, 2.5, 2.0]),
    outcome("1 k", "vectors", 1, 20.0, [2.0, 1.4, 1.2]),
    outcome("1 k", "vectors", 2, 22.0, [3.0, 2.0, 1.6]),
    outcome("5 k", "random", 1, 30.0, [1.0, 0.9]),
    outcome("5 k", "random", 2, 30.0, [1.0, 0.9]),
    outcome("5 k", "vectors", 1, 30.0, [1.5, 1.4]),
    outcome("5 k", "vectors", 2, 30.0, [1.5, 1.4]),
]


def test_all_combinations_with_their_keys(tmp_path: Path) -> None:
    found = study(tmp_path)
    keys = [combination.key for combination in combinations(found)]
    assert keys == ["1-k_random", "1-k_vectors", "5-k_random", "5-k_vectors"]
    last = combinations(found)[-1]
    assert overrides_of(found, last) == {"train.max_steps": 5, "model.width": 32, "a.b": "c"}
    assert found.base == str(tmp_path / "base.yaml")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/studies/*.yaml")), ids=lambda p: p.name)
def test_the_stored_studies_and_all_their_runs_are_sound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTI30K_DIR", "/nowhere")
    found = load_study(str(path))
    if isinstance(found, OneHotStudy):
        return
    runs = [config_of(found, one, seed) for one in combinations(found) for seed in found.seeds]
    assert len({config.run.uri for config in runs}) == len(runs)
    assert len(found.seeds) >= 3


def test_means_and_spreads_over_seeds(tmp_path: Path) -> None:
    found = summaries(study(tmp_path), OUTCOMES)
    bleu = found["1-k_random"]["bleu"]
    assert (bleu.mean, bleu.spread) == (11.0, pytest.approx(math.sqrt(2)))
    assert bleu.text("{:.2f}") == "11.00 ± 1.41"
    # The reference's mean best loss is 1.5: reached at step 20 by one seed, never by the other.
    steps = found["1-k_vectors"]["steps_to_reference"]
    assert (steps.values, steps.lacking) == ([20.0], 1)
    assert steps.text("{:.0f}") == "20 (1 never)"
    assert found["5-k_vectors"]["steps_to_reference"].text("{:.0f}") == "never"
    assert found["5-k_random"]["steps_to_reference"].values == [20.0, 20.0]


def test_the_page_tells_what_was_run_and_whether_expectations_held(tmp_path: Path) -> None:
    page = study_page(
        study(tmp_path), OUTCOMES, command="bash launch/run.sh study x", machine=MACHINE,
        plot_name="x.svg",
    )  # fmt: skip
    assert "| 1 k | random | 11.00 ± 1.41 |" in page
    assert "`train.max_steps=5`" in page
    assert "| vectors | `a.b=c` |" in page
    assert "![test BLEU](x.svg)" in page
    lines = [line for line in page.splitlines() if line.startswith("- ")]
    assert "**holds here**" in lines[0]
    assert "**the opposite was found here**" in lines[1]
    assert "no difference beyond the spread" in lines[2]
    assert "2 cores, 23 GiB, a CPU; torch 9" in page


def test_the_plot_has_a_line_for_each_level(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    draw_study(study(tmp_path), OUTCOMES, str(path))
    text = path.read_text()
    for word in ("random", "vectors", "pairs", "1,000", "5,000", "test BLEU"):
        assert f">{word}<" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "trainin"}, "kind: 'trainin' is not allowed.*did you mean 'training'"),
        ({"seeds": []}, "seeds"),
        ({"measures": ["bleus"]}, r"measures\.0"),
        ({"colour": 1}, "colour"),
        ({"reference": None}, "steps_to_reference needs `reference`"),
        ({"reference": {"factor": "start", "level": "x"}}, "reference: there is no 'start' 'x'"),
        ({"plot": STUDY["plot"] | {"x": "no"}}, "plot: there is no factor 'no'"),
        ({"plot": STUDY["plot"] | {"x": "start"}}, "every level of 'start' needs `x`"),
        ({"expectations": [STUDY["expectations"][0] | {"better": {"pairs": "1 k"}}]},
         "no level of start"),
        ({"factors": [{"name": "a", "levels": [{"name": "x"}, {"name": "x"}]}]}, "two levels"),
    ],
)  # fmt: skip
def test_mistakes_in_a_study_are_named(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(written(tmp_path, **changes))
    with pytest.raises(ConfigError, match="cannot read study"):
        load_study(str(tmp_path / "none.yaml"))


def test_a_one_hot_product_is_a_lookup() -> None:
    matrix = torch.nn.Parameter(torch.randn(50, 7))
    ids = torch.tensor([3, 49, 3, 0])
    found = {}
    for name, way in WAYS.items():
        matrix.grad = None
        out = way(ids, matrix)
        out.backward(torch.arange(28.0).view(4, 7))
        assert matrix.grad is not None
        found[name] = (out.detach(), matrix.grad.to_dense())
    assert torch.equal(found["one_hot"][0], matrix.detach()[ids])
    for a, b in zip(found["one_hot"], found["lookup"], strict=True):
        torch.testing.assert_close(a, b)


def test_one_hot_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = OneHotStudy(kind="one_hot", title="t", question="q", folder=str(tmp_path / "s"),
                         words=[100, 1000], width=8, tokens=64, rounds=2)  # fmt: skip
    # In this process: what a process of its own is for is tried below.
    monkeypatch.setattr(one_hot, "_apart", lambda function, *arguments: function(*arguments))
    said: list[str] = []
    figures = run_one_hot(wanted, said.append)
    for one in figures:
        assert one.one_hot is not None
        assert one.lookup is not None
        assert one.output_difference == 0
        assert one.gradient_difference is not None
        assert one.gradient_difference < 1e-4
    assert len(said) == 6
    assert run_one_hot(wanted, said.append) == figures
    assert len(said) == 6
    none = OneHotFigures(10**9, None, figures[0].lookup, None, None)
    assert "| 1,000,000,000 | does not fit |" in one_hot_table([*figures, none])
    draw_one_hot([*figures, none], str(tmp_path / "p.svg"))
    assert "one-hot" in (tmp_path / "p.svg").read_text()


def test_what_does_not_fit_ends_its_own_process() -> None:
    # 2⁴⁰ words of 64 values: no machine has as much.
    assert one_hot._apart(one_hot._cost, "one_hot", 2**40, 64, 1, 1) is None
