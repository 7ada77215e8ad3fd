from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from dist_embed.cli.main import main
from dist_embed.config.load import config_from_dict
from dist_embed.data.preparation import ensure_data
from dist_embed.data.token_shards import PreparedData, ShardInfo, Split
from dist_embed.errors import ConfigError, RunStopped, UserError
from dist_embed.observe.plot import GREY, INK
from dist_embed.run.metrics import MetricsLog
from dist_embed.storage import uri as storage
from dist_embed.study import planned as study_planned
from dist_embed.study import plot as study_plot
from dist_embed.study import run as study_run
from dist_embed.study import scored as study_scored
from dist_embed.study import summary as study_summary
from dist_embed.study import word_vectors
from dist_embed.study.outcome import Outcome
from dist_embed.study.plan import combinations, load_study, number_of_runs, overrides_of
from dist_embed.study.planned import planned_runs
from dist_embed.study.plot import draw_study
from dist_embed.study.report import left_out, study_page, too_few_seeds
from dist_embed.study.schema import TrainingStudy, WordVectors, study_keys_page
from dist_embed.study.scored import speed_of
from dist_embed.study.summary import (
    Comparison,
    Summary,
    corrected,
    least_p,
    p_value,
    seeds_that_tell,
    summaries,
    verdicts,
)
from dist_embed.study.word_vectors import ensure_word_vectors
from dist_embed.training.results import Evaluation, TrainingStopped, TrainResult
from tests.unit.drawn_axes import drawn_axes
from tests.unit.small_corpus import one_is_this_process

ROOT = Path(__file__).parents[2]
PAGES = 2000  # of simulated results


@pytest.fixture(autouse=True)
def unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is prepared for the plans of runs that are none."""
    monkeypatch.setattr(study_run, "prepare", lambda config, **how: None)


STUDY: dict[str, Any] = {
    "title": "Starts", "question": "Does a start help?", "folder": "/f", "base": "base.yaml",
    "seeds": [1, 2, 3], "set": {"train.max_steps": 5, "model.width": 16},
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
        {"text": "No worse", "measure": "bleu", "better": {"pairs": "1 k", "start": "random"},
         "worse": {"pairs": "1 k", "start": "vectors"}, "held": False},
        {"text": "Sooner", "measure": "steps_to_reference",
         "better": {"pairs": "1 k", "start": "vectors"},
         "worse": {"pairs": "1 k", "start": "random"}},
    ],
}  # fmt: skip
MACHINE = {"cores": 2, "memory_gib": 23.0, "device": "a CPU", "versions": {"torch": "9"}}


def written(to: Path, **changes: Any) -> str:
    path = to / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    return str(path)


def study(folder: Path) -> TrainingStudy:
    found = load_study(written(folder))
    assert isinstance(found, TrainingStudy)
    return found


def outcome(pairs: str, start: str, seed: int, bleu: float, losses: list[float]) -> Outcome:
    measures = {"bleu": bleu, "validation_perplexity": math.exp(min(losses)), "chrf": 50.0,
                "gap": 0.1, "parameters": 10, "tokens_per_second": 5.0, "epochs": 2.0,
                "sentences_per_second": 1.0, "best_step": 3}  # fmt: skip
    steps = [(10 * n, loss) for n, loss in enumerate(losses, start=1)]
    return Outcome({"pairs": pairs, "start": start}, seed, measures, steps, MACHINE)


OUTCOMES = [
    outcome("1 k", "random", 1, 10.0, [3.0, 2.0, 1.0]),
    outcome("1 k", "random", 2, 12.0, [3.0, 2.5, 2.0]),
    outcome("1 k", "random", 3, 11.0, [3.0, 1.9, 1.8]),
    outcome("1 k", "vectors", 1, 20.0, [2.0, 1.4, 1.2]),
    outcome("1 k", "vectors", 2, 22.0, [3.0, 2.0, 1.6]),
    outcome("1 k", "vectors", 3, 21.0, [3.0, 2.4, 2.1]),
    *(outcome("5 k", "random", seed, 30.0, [1.0, 0.9]) for seed in (1, 2, 3)),
    *(outcome("5 k", "vectors", seed, 30.0, [1.5, 1.4]) for seed in (1, 2, 3)),
]


def test_all_combinations_with_their_keys(tmp_path: Path) -> None:
    found = study(tmp_path)
    keys = [combination.key for combination in combinations(found)]
    assert keys == ["1-k_random", "1-k_vectors", "5-k_random", "5-k_vectors"]
    last = combinations(found)[-1]
    assert overrides_of(found, last) == {"train.max_steps": 5, "model.width": 32, "a.b": "c"}
    assert found.base == "base.yaml"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/studies/*.yaml")), ids=lambda p: p.name)
def test_the_stored_studies_and_all_their_runs_are_sound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTI30K_DIR", "/nowhere")
    monkeypatch.chdir(ROOT)
    found = load_study(str(path))
    assert len(found.seeds) >= seeds_that_tell(len(found.expectations))
    runs = planned_runs(found.model_copy(update={"seeds": found.seeds[:2]}))
    assert len({run.config.run.uri for run in runs}) == len(runs)
    # What the machine does meanwhile is to fall on all alike.
    assert len({run.seed for run in runs[: len(combinations(found))]}) == 1


def test_the_example_of_the_documentation_is_a_study(tmp_path: Path) -> None:
    example = (ROOT / "docs/studies/README.md").read_text().split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "study.yaml"
    path.write_text(example.replace("../quickstart.yaml", str(ROOT / "configs/quickstart.yaml")))
    found = load_study(str(path))
    assert isinstance(found, TrainingStudy)
    assert len(planned_runs(found)) == 8
    assert len(found.seeds) >= seeds_that_tell(len(found.expectations))


def test_means_and_spreads_over_seeds(tmp_path: Path) -> None:
    found = summaries(study(tmp_path), OUTCOMES)
    bleu = found["1-k_random"]["bleu"]
    assert (bleu.mean, bleu.deviation) == (11.0, 1.0)
    assert bleu.text("{:.2f}") == "11.00 ± 1.00"
    # The worst seed of the reference has 2.0 as its best loss.
    assert found["1-k_random"]["steps_to_reference"].values == [20.0, 30.0, 20.0]
    steps = found["1-k_vectors"]["steps_to_reference"]
    assert steps.values == [10.0, 20.0, math.inf]
    assert steps.text("{:.0f}") == "15 ± 7 (1 of 3 never)"
    assert found["5-k_vectors"]["steps_to_reference"].text("{:.0f}") == "never"
    assert found["5-k_random"]["steps_to_reference"].values == [20.0] * 3
    assert Summary([3.0]).text("{:.1f}") == Summary([3.0, 3.0]).text("{:.1f}") == "3.0"
    assert Summary([3.0, math.inf]).text("{:.1f}") == "3.0 (1 of 2 never)"
    assert Summary([]).text("{:.0f}") == Summary([math.nan]).text("{:.0f}") == "no value"
    assert Summary([10.0, math.nan, 12.0]).text("{:.1f}") == "11.0 ± 1.4 (1 of 3 missing)"
    some = Summary([math.inf, math.nan, math.nan, 7.0])
    assert some.text("{:.0f}") == "7 (1 of 4 never, 2 of 4 missing)"
    assert Summary([math.inf, math.nan]).text("{:.0f}") == "1 of 2 never, 1 of 2 missing"


def test_without_a_validation_nobody_knows_when_the_reference_was_reached(tmp_path: Path) -> None:
    def steps(*changed: int) -> Any:
        given = [replace(one, validations=[]) if number in changed else one
                 for number, one in enumerate(OUTCOMES)]  # fmt: skip
        return summaries(study(tmp_path), given)["1-k_vectors"]["steps_to_reference"].values

    assert steps() == [10.0, 20.0, math.inf]
    first, *others = steps(3)
    assert math.isnan(first)
    assert others == [20.0, math.inf]
    assert all(map(math.isnan, steps(0)))  # of a seed of the reference


def test_p_is_that_of_every_split_of_the_values() -> None:
    assert p_value([4, 5, 6], [1, 2, 3]) == p_value([1, 2, 3], [4, 5, 6]) == least_p(3) == 0.1
    assert p_value([2], [1]) == least_p(1) == 1
    assert p_value([3, 4], [1, 2]) == least_p(2) == 1 / 3
    assert p_value([7, 7, 7], [7, 7, 7]) == 1
    assert p_value([4, 5, math.inf], [1, 2, 3]) == 0.1
    assert p_value([-math.inf] * 3, [1, 2, 2]) == 0.1
    assert p_value([3, 5, 6], [1, 2, 4]) == 0.2
    assert math.isnan(p_value([3, math.nan, 6], [1, 2, 4]))
    generator = np.random.default_rng(0)
    for shift in (0.0, 0.7, 2.0):
        a, b = (generator.normal(s, 1, 5).round(1).tolist() for s in (shift, 0.0))
        everyone = scipy.stats.permutation_test(
            (a, b), lambda x, y, axis: scipy.stats.mannwhitneyu(x, y, axis=axis).statistic,
            n_resamples=np.inf, vectorized=True,
        )  # fmt: skip
        assert p_value(a, b) == pytest.approx(everyone.pvalue)
    # Too many splits for each of them: random ones, always the same, and near the exact value.
    a, b = (generator.normal(s, 1, 15).tolist() for s in (0.6, 0.0))
    exact = scipy.stats.mannwhitneyu(a, b, method="exact").pvalue
    assert p_value(a, b) == p_value(a, b) == pytest.approx(exact, abs=0.01)
    assert 0 < p_value(range(50, 80), range(30)) < 2e-4


def test_seeds_that_can_tell() -> None:
    assert [seeds_that_tell(m) for m in (1, 2, 3, 6, 7, 23, 24)] == [4, 5, 5, 5, 6, 6, 7]


def test_p_values_are_corrected_for_their_number() -> None:
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([0.5, 0.02, 0.5]) == pytest.approx([1.0, 0.06, 1.0])
    assert corrected([]) == []
    several = corrected([0.01, math.nan, 0.03])  # what cannot be told was asked all the same
    assert several[::2] == pytest.approx([0.03, 0.06])
    assert math.isnan(several[1])


@pytest.mark.parametrize(
    ("seeds", "expectations", "spread", "level"),
    [(3, 1, 1, 0.0), (3, 3, 1, 0.0), (4, 1, 1, 0.0286), (5, 1, 1, 0.0317), (5, 3, 1, 0.0469),
     (6, 3, 1, 0.0448), (5, 1, 10, 0.06), (5, 3, 10, 0.14)],
)  # fmt: skip
def test_pages_on_nothing_have_a_verdict_in_at_most_one_of_twenty(
    seeds: int, expectations: int, spread: float, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The levels in docs/decisions/0021-what-a-study-can-tell.md."""
    known: dict[int, float] = {}

    def by_ranks(one: Any, other: Any) -> float:  # without ties p follows from the sum of ranks
        total = sum(b < a for a in one for b in other)
        if total not in known:
            known[total] = p_value(one, other)
        return known[total]

    monkeypatch.setattr(study_summary, "p_value", by_ranks)
    values = np.random.default_rng(1).normal(size=(PAGES, expectations, 2, seeds))
    values[:, :, 1] *= spread
    told = sum(
        any("**" in said for said in verdicts([Comparison(*sides) for sides in page]))
        for page in values.tolist()
    )
    assert told / PAGES <= 0.05 or spread > 1
    # Known but for chance: three standard deviations of a share of so many pages.
    assert abs(told / PAGES - level) <= 3 * math.sqrt(level / PAGES)


@pytest.mark.parametrize(
    ("better", "worse", "held", "said"),
    [
        ([5, 6, 7, 8], [1, 2, 3, 4], True, "**holds here** (p = 0.029, corrected 0.029)"),
        ([5, 6, 7, 8], [1, 2, 3, 4], False, "**does not hold here** (p"),
        ([1, 2, 3, 4], [5, 6, 7, 8], True, "**the opposite was found here** (p"),
        ([1, 2, 3, 4], [5, 6, 7, 8], False, "**holds here** (p"),
        ([4, 6, 7, 8], [1, 2, 3, 5], True, "no difference that these seeds could tell"),
        ([4, 5, 6], [1, 2, 3], True, "cannot be told with 3 seeds (p = 0.1, corrected 0.1)"),
        ([9], [1], True, "cannot be told with 1 seed (p = 1, corrected 1)"),
        ([9, 8, 7, math.nan], [1, 2, 3, 4], True, "cannot be told: a value is missing"),
        # Runs that never arrive, as negative infinities.
        ([-20, -math.inf, -math.inf, -9], [-30, -math.inf, -20, -9], True, "no difference"),
        ([-math.inf] * 4, [-30, -30, -20, -9], True, "**the opposite was found here**"),
        ([-math.inf] * 4, [-math.inf] * 4, True, "no difference"),
    ],
)
def test_verdicts_need_more_than_chance(
    better: list[float], worse: list[float], held: bool, said: str
) -> None:
    assert verdicts([Comparison(better, worse, held)])[0].startswith(said)


def test_verdicts_of_several_expectations_need_more() -> None:
    clear = Comparison([5, 6, 7, 8], [1, 2, 3, 4])
    assert all(said.startswith("cannot be told with 4 seeds") for said in verdicts([clear] * 2))
    clear = Comparison([6, 7, 8, 9, 10], [1, 2, 3, 4, 5])  # p 0.0079
    nearly = Comparison([4, 7, 8, 9, 10], [1, 2, 3, 5, 6])  # p 0.032
    assert verdicts([nearly])[0].startswith("**holds here**")
    assert [said[:9] for said in verdicts([clear, nearly])] == ["**holds h", "**holds h"]
    assert [said[:9] for said in verdicts([nearly, clear, nearly])] == [
        "no differ", "**holds h", "no differ",
    ]  # fmt: skip


def test_the_page_tells_what_was_run_and_whether_expectations_held(tmp_path: Path) -> None:
    found = study(tmp_path)
    page = study_page(found, OUTCOMES, command="bash launch/run.sh study x", plot_name="x.svg")
    assert "| 1 k | random | 11.00 ± 1.00 |" in page
    assert "`train.max_steps=5`" in page
    assert "| vectors | `a.b=c` |" in page
    assert "![test BLEU](x.svg)" in page
    assert page.count("2 cores, 23 GiB, a CPU; torch 9") == 1
    assert "Holm's correction for the 5 expectations of this page" in page
    assert "3 seeds cannot tell any difference from chance here: where all of one side" in page
    assert "p is 0.1, after the correction 0.5. 5 seeds could." in page
    assert "over seeds, without those that are told beside a figure. The checkpoint" in page
    lines = [line for line in page.splitlines() if line.startswith("- ")]
    assert all("— cannot be told with 3 seeds (p = " in line for line in lines[:4])
    # The aim is the loss that every seed of `random` has reached.
    assert "— cannot be told: the seeds of one side set the aim: steps to reference" in lines[4]
    assert "(p = 0.1, corrected 0.5): test BLEU 21.00 ± 1.00 (pairs 1 k, start vectors)" in lines[0]
    other = replace(OUTCOMES[0], machine=MACHINE | {"cores": 99})
    assert "2 cores, 23 GiB, a CPU; torch 9; and on: 99 cores" in study_page(
        found, [*OUTCOMES, other], command="x", plot_name=None
    )
    some = study_page(found, lacking({0: math.nan}), command="x", plot_name=None)
    assert "| 1 k | random | 11.50 ± 0.71 (1 of 3 missing) |" in some
    assert "— cannot be told: a value is missing: test BLEU 21.00" in some
    short = found.model_copy(update={"measures": ["bleu"], "expectations": []})
    short = short.model_copy(update={"plot": None})
    assert "deviation over seeds. The" in study_page(short, OUTCOMES, command="x", plot_name=None)
    two_more = [replace(one, seed=one.seed + 3) for one in OUTCOMES if one.seed < 3]
    page = study_page(
        found.model_copy(update={"seeds": [1, 2, 3, 4, 5]}), [*OUTCOMES, *two_more],
        command="x", plot_name=None,
    )  # fmt: skip
    assert "seeds cannot" not in page
    lines = [line for line in page.splitlines() if line.startswith("- ")]
    assert "**holds here** (p = 0.0079, corrected 0.04)" in lines[0]
    assert "**the opposite was found here**" in lines[1]
    assert "no difference that these seeds could tell" in lines[2]
    assert "**holds here**" in lines[3]
    assert "cannot be told: the seeds of one side set the aim" in lines[4]
    assert "(1 of 5 never)" in lines[4]


def test_the_page_explains_its_columns_and_what_was_made_before(tmp_path: Path) -> None:
    vectors = [
        {"text": ["/a/one.txt", "s3://b/two.txt"], "output": "v.txt", "width": 4, "epochs": 7,
         "window": 3, "min_count": 6},
        {"text": "/a/one.txt", "output": "w.txt", "width": 8},
    ]  # fmt: skip
    given = {"word_vectors": vectors, "set": {"train.max_steps": 5, "tokenizer.shared": False},
             "expectations": STUDY["expectations"][:1]}  # fmt: skip
    found = load_study(written(tmp_path, measures=["gap", "bleu", "parameters"], **given))
    assert isinstance(found, TrainingStudy)
    page = study_page(found, OUTCOMES, command="x", plot_name=None)
    assert "loss of 20,000 tokens of the training data" in page
    assert "worst seed of start “random” in the same rows" in page
    assert (
        "`v.txt`: word2vec (skip-gram, gensim) of `one.txt`, `two.txt`, width 4, 7 epochs, "
        "window 3, minimum count 6.\n"
    ) in page
    assert "`w.txt`: word2vec (skip-gram, gensim) of `one.txt`, width 8, 5 epochs" in page
    assert "with `tokenizer.shared=false`, `train.max_steps=5`.\n3 seeds" in page
    assert "| random | nothing |" in page
    assert "| pairs | start | train–validation gap | test BLEU | parameters |" in page
    assert "| --- | --- | ---: | ---: | ---: |" in page
    assert "| 5 k | vectors | 0.100 | 30.00 | 10 |" in page
    assert "Holm's correction for the one expectation of this page" in page
    assert "![" not in page
    alone = found.model_copy(update={"seeds": [1], "set": {}, "reference": None})
    page = study_page(alone, OUTCOMES[::3], command="x", plot_name="x.svg")
    assert "is `base.yaml`.\n1 seeds" in page
    assert "One seed cannot tell any difference from chance here" in page
    assert "p is 1, after the correction 1. 4 seeds could." in page
    assert "Steps to reference" not in page
    none = found.model_copy(update={"expectations": [], "measures": ["bleu"]})
    page = study_page(none, OUTCOMES, command="x", plot_name=None)
    assert "What was expected" not in page
    assert "loss of 20,000 tokens" not in page
    assert too_few_seeds(none) is None


def test_what_the_page_lacks_is_told_once_for_each_figure(tmp_path: Path) -> None:
    found = study(tmp_path)
    steps = ["1 k, vectors: steps to reference: 1 of 3 never",
             "5 k, vectors: steps to reference: never"]  # fmt: skip
    assert left_out(found, OUTCOMES) == steps
    plotted = lacking({0: math.nan})
    plot = found.model_copy(update={"measures": ["chrf"], "expectations": []})
    assert left_out(plot, plotted) == ["1 k, random: test BLEU: 1 of 3 missing"]
    assert left_out(plot.model_copy(update={"plot": None}), plotted) == []
    assert left_out(found, plotted) == ["1 k, random: test BLEU: 1 of 3 missing", *steps]


def test_steps_to_a_reference_are_compared_where_it_is_neither_side_or_both(
    tmp_path: Path,
) -> None:
    """Its seeds reach by construction what they set; levels of another factor have their own."""
    for better, worse, alike in (
        (("1 k", "vectors"), ("1 k", "random"), False),
        (("1 k", "random"), ("5 k", "vectors"), False),
        (("1 k", "vectors"), ("5 k", "vectors"), True),
        (("1 k", "random"), ("5 k", "random"), True),
    ):
        sides = [dict(zip(("pairs", "start"), side, strict=True)) for side in (better, worse)]
        expected = {"text": "x", "better": sides[0], "worse": sides[1]}
        for measure in ("steps_to_reference", "bleu"):
            found = load_study(written(tmp_path, expectations=[expected | {"measure": measure}]))
            assert isinstance(found, TrainingStudy)
            page = study_page(found, OUTCOMES, command="x", plot_name=None)
            assert ("set the aim" in page) == (measure != "bleu" and not alike)


def test_a_loss_that_is_not_finite_sets_no_aim(tmp_path: Path) -> None:
    broken = [replace(one, validations=[(5, math.nan), *one.validations]) for one in OUTCOMES]
    found, before = (summaries(study(tmp_path), some) for some in (broken, OUTCOMES))
    assert {key: one["steps_to_reference"] for key, one in found.items()} == {
        key: one["steps_to_reference"] for key, one in before.items()
    }


def test_a_run_with_other_settings_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ndata: {synthetic: {}}\ntrain: {max_steps: 9}\n")
    plain = {"set": {"train.max_steps": 5}, "factors": [STUDY["factors"][0]], "expectations": [],
             "reference": None, "measures": ["bleu"], "plot": None, "seeds": [1]}  # fmt: skip
    vectors = {"text": "a.txt", "output": "v.txt", "width": 4}

    def names(**changes: Any) -> set[str]:
        found = load_study(written(tmp_path, **(plain | changes)))
        assert isinstance(found, TrainingStudy)
        return {run.name for run in planned_runs(found)}

    def settings(**values: Any) -> dict[str, Any]:
        return {
            "set": {"train.max_steps": 5, **{k.replace("__", "."): v for k, v in values.items()}}
        }

    first = names()
    assert names() == first
    assert len(first) == 2
    none_kept = names(**settings(checkpoint__keep_best=0))
    for changes in (
        settings(train__max_steps=6),
        settings(search__beam=1),
        settings(train__evaluate_every=2),
        settings(cluster__num_workers=3),
        settings(cluster__launcher="local"),  # by which the speed differs
        settings(checkpoint__every_steps=3),
        settings(checkpoint__every_minutes=3.0),
        settings(checkpoint__keep_best=0, checkpoint__keep_last=2),
    ):
        assert not names(**changes) & (first | none_kept), changes
    # What decides nothing: waits, failures that are outlived, places, vectors that no run takes.
    for changes in (
        settings(cluster__timeout_seconds=9.0, cluster__max_failures=1),
        settings(checkpoint__timeout_seconds=9.0, checkpoint__keep_last=1, checkpoint__keep_best=2),
        settings(data__num_processes=1, train__max_skipped_steps=2),
        {"folder": "/g"},
        {"word_vectors": [vectors]},
    ):
        assert names(**changes) == first, changes
    start = {"model.share_embeddings": "none",
             "embedding.tables.source": {"pretrained": {"uri": "{study}/v.txt"}}}  # fmt: skip
    taken = {"set": plain["set"] | start, "word_vectors": [vectors]}
    for place in ("/g/h", "g/h", "h/h", "s3://g/h/"):
        assert names(**taken) == names(**taken, folder=place)
    assert names(**taken) == names(**taken | {"word_vectors": [vectors, vectors | {"output": "w"}]})
    assert not names(**taken) & names(**taken | {"word_vectors": [vectors | {"epochs": 7}]})
    levels = [{"name": "x"}, {"name": "y", "set": {"modl.width": 1}}]
    with pytest.raises(ConfigError, match="modl"):
        names(factors=[{"name": "a", "levels": levels}])
    monkeypatch.setattr(study_planned, "TRAINING", "otherwise")
    assert not names() & first


def test_a_run_that_was_scored_in_another_way_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ndata: {synthetic: {}}\ntrain: {max_steps: 9}\n")
    plain = {"set": {}, "factors": [{"name": "s", "levels": [
        {"name": f"{n}", "set": {"train.max_steps": n}} for n in (3, 4)]}], "expectations": [],
        "reference": None, "measures": ["bleu"], "plot": None}  # fmt: skip
    found = load_study(written(tmp_path, folder=str(tmp_path / "f"), seeds=[1, 2], **plain))
    assert isinstance(found, TrainingStudy)
    scored: list[str] = []

    def score(config: Any, on_event: Any) -> dict[str, Any]:
        scored.append(config.run.uri)
        return {"measures": {"bleu": float(len(scored))}, "validations": [], "machine": MACHINE,
                "figures": {}}  # fmt: skip

    monkeypatch.setattr(study_run, "train_and_score", score)
    monkeypatch.setattr(study_run, "ensure_word_vectors", lambda *_: None)
    first = study_run.run_study(found, lambda event: None)
    assert study_run.run_study(found, lambda event: None) == first
    assert len(scored) == len(first) > 2
    file = sorted((tmp_path / "f" / "results").iterdir())[0]
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items()
                                if k != "scoring"}))  # fmt: skip
    again = study_run.run_study(found, lambda event: None)
    assert len(scored) == len(first) + 1  # as one of 0.2.0, which says nothing
    assert sum(one != other for one, other in zip(first, again, strict=True)) == 1
    monkeypatch.setattr(study_run, "SCORING", study_run.SCORING + 1)
    study_run.run_study(found, lambda event: None)
    assert len(scored) == 2 * len(first) + 1


def test_a_damaged_result_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ndata: {synthetic: {}}\ntrain: {max_steps: 9}\n")
    start = {"embedding.tables.source": {"pretrained": {"uri": str(base)}}}
    plain = {"set": start | {"model.share_embeddings": "none"}, "expectations": [], "plot": None,
             "factors": [{"name": "s", "levels": [{"name": "t"}]}], "reference": None,
             "measures": ["bleu"], "seeds": [1]}  # fmt: skip
    found = load_study(written(tmp_path, folder=str(tmp_path / "f"), **plain))
    sound = {"measures": {"bleu": math.nan}, "validations": [[1, 2.5]], "machine": MACHINE,
             "figures": {"test_bleu": 3, "memory_bytes": [1]}}  # fmt: skip
    monkeypatch.setattr(study_run, "train_and_score", lambda config, on_event: sound)
    study_run.run_study(found, lambda event: None)
    study_run.run_study(found, lambda event: None)
    note, result = sorted((tmp_path / "f/results").iterdir())
    there = json.loads(result.read_text())
    changes: list[Any] = [
        *({key: odd} for key in ("measures", "validations", "machine", "figures", "planned")
          for odd in (None, 3, "a", [1])),
        {"machine": {}}, {"machine": MACHINE | {"cores": "2"}}, {"validations": [[1]]},
        {"measures": {"bleu": "a"}}, {"figures": {"test_bleu": "a"}}, {"figures": {"steps": 1e300}},
        {"figures": {"steps": 10**30}}, {"figures": {"phases": 3}},
    ]  # fmt: skip
    for change in changes:
        result.write_text(json.dumps(there | change))
        with pytest.raises(UserError, match=f"{result.name} is damaged .* scored again"):
            study_run.run_study(found, lambda event: None)
    # As a later version may have scored it alike, and said more of it.
    result.write_text(json.dumps(there | {"x": 1, "machine": MACHINE | {"gpus": 8}}))
    study_run.run_study(found, lambda event: None)
    assert "gpus" in result.read_text()  # it was not made again
    for text in ("[]", "{", '{"a": 3}', '{"a": [3]}', '{"a": [{"uri": "b"}]}'):
        note.write_text(text)
        with pytest.raises(UserError, match=f"{note.name} is damaged .* files that the run began"):
            study_run.run_study(found, lambda event: None)


def test_vectors_are_made_before_the_runs_that_start_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ndata: {inflected: {}}\ntrain: {max_steps: 9}\n")
    vectors = [{"text": "a.txt", "output": f"{name}.txt", "width": 4} for name in "vw"]
    start = {"embedding.tables.source": {"pretrained": {"uri": "{study}/v.txt"}}}
    plain = {"set": start, "factors": [{"name": "s", "levels": [{"name": "t"}]}], "seeds": [7],
             "expectations": [], "reference": None, "measures": ["bleu"], "plot": None,
             "word_vectors": vectors}  # fmt: skip
    found = load_study(written(tmp_path, folder=f"{tmp_path}/f/", **plain))
    assert isinstance(found, TrainingStudy)
    course: list[Any] = []

    def score(config: Any, on_event: Any) -> dict[str, Any]:
        source = config.embedding.tables.source
        course.append((source.pretrained.uri, config.run.seed))
        return {"measures": {}, "validations": [], "machine": MACHINE, "figures": {}}

    monkeypatch.setattr(study_run, "train_and_score", score)
    monkeypatch.setattr(
        study_run, "ensure_word_vectors",
        lambda wanted, folder, say: course.append((wanted.output, folder)),
    )  # fmt: skip
    study_run.run_study(found, lambda event: None)
    folder = f"{tmp_path}/f"
    assert course == [("v.txt", f"{folder}/"), ("w.txt", f"{folder}/"), (f"{folder}/v.txt", 7)]


def test_runs_of_a_cluster_lie_where_all_of_it_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ndata: {synthetic: {}}\ntrain: {max_steps: 9}\n")
    plain = {"set": {}, "factors": [{"name": "s", "levels": [{"name": "t"}]}], "seeds": [7],
             "expectations": [], "reference": None, "measures": ["bleu"], "plot": None}  # fmt: skip
    found = load_study(written(tmp_path, folder="studies/f", **plain))
    assert isinstance(found, TrainingStudy)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    (run,) = planned_runs(found)
    assert run.config.run.uri == f"{tmp_path}/studies/f/runs/{run.name}"
    assert run.config.data.uri.startswith(f"{tmp_path}/studies/f/data/")
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    with pytest.raises(UserError, match="is not allowed on a Ray cluster"):
        planned_runs(found)


def base_of(path: str, base: str) -> str:
    storage.write_text(path, yaml.safe_dump(STUDY | {"base": base}))
    return load_study(path).base


def test_a_base_lies_where_the_caller_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a/b/d").mkdir(parents=True)
    (tmp_path / "c.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for base in ("c.yaml", "./c.yaml", "/x/c.yaml", "s3://x/c.yaml", f"{tmp_path}/c.yaml"):
        for path in ("a/b/study.yaml", f"{tmp_path}/a/study.yaml", "study.yaml"):
            assert base_of(path, base) == base
    assert base_of("a/b/study.yaml", "gone.yaml") == "gone.yaml"
    monkeypatch.chdir("a")
    assert base_of("b/study.yaml", "../c.yaml") == "../c.yaml"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("base", "there"), [("c.yaml", "a/b/c.yaml"), ("../c.yaml", "a/c.yaml"),
                        ("./d/c.yaml", "a/b/d/c.yaml")],
)  # fmt: skip
def test_one_beside_the_study_is_read_as_before_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    base: str, there: str,
) -> None:  # fmt: skip
    (tmp_path / "a/b/d").mkdir(parents=True)
    (tmp_path / there).touch()
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    for path in ("../a/b/study.yaml", f"{tmp_path}/a/b/study.yaml"):
        assert storage.absolute(base_of(path, base)) == f"{tmp_path}/{there}"
        told = capsys.readouterr().err
        assert told.startswith(f"{path}: base: {base!r} is read beside the study's file; paths are")
        assert told.count("\n") == 1


def test_a_base_that_is_two_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    for path in ("c.yaml", "a/c.yaml"):
        (tmp_path / path).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"is both {tmp_path}/c.yaml and.*{tmp_path}/a/c.yaml"):
        base_of("a/study.yaml", "c.yaml")
    monkeypatch.chdir("a")  # seen from here it is one
    assert base_of("study.yaml", "c.yaml") == "c.yaml"


def test_a_loss_too_large_for_a_perplexity_has_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = SimpleNamespace(tensors={})
    monkeypatch.setattr(study_scored, "read_manifest", lambda store, name: manifest)
    monkeypatch.setattr(study_scored, "name_of_step", lambda uri, step: step)
    data = PreparedData({}, {}, True, {"train": Split([ShardInfo("s", 30, 100, 170)])})
    config = config_from_dict(
        {"run": {"uri": str(tmp_path)}, "data": {"synthetic": {}}, "train": {"max_steps": 9}}
    )
    scored: Any = SimpleNamespace(step=4, bleu=1.0, chrf=2.0, training_loss=1.0)
    for validations, perplexity, gap in (({4: 1e4}, math.exp(700), 9999.0), ({3: 1.0}, None, None)):
        found = study_scored._measures(config, data, scored, [], validations)
        for value, wanted in ((found["validation_perplexity"], perplexity), (found["gap"], gap)):
            assert math.isnan(value) if wanted is None else value == wanted
        assert math.isnan(found["epochs"])


def test_a_run_that_logged_no_speed_has_none_and_is_kept() -> None:
    lines = [{"step": 2, "tokens_per_second": 10.0, "step_seconds": 0.5}, {"step": 2, "loss": 1.0},
             {"step": 4, "tokens_per_second": 20.0, "step_seconds": 0.5}]  # fmt: skip
    assert speed_of(lines) == (15.0, 7.5)
    assert all(math.isnan(value) for value in speed_of(lines[1:2]))
    assert Summary(list(speed_of([]))).text("{:.0f}") == "no value"


def test_word_vectors_are_made_once_and_again_when_told_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("gensim")
    text = tmp_path / "text.txt"
    text.write_text("a b c a b\nb c a c\n" * 20)
    wanted = WordVectors(text=str(text), output="v.txt", width=4, epochs=1)
    said: list[str] = []
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    first = (tmp_path / "v.txt").read_text()
    assert first.splitlines()[0] == "3 4"
    assert len(said) == 2
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    assert len(said) == 2
    ensure_word_vectors(wanted.model_copy(update={"epochs": 9}), str(tmp_path), said.append)
    assert len(said) == 4
    assert (tmp_path / "v.txt").read_text() != first
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    assert (tmp_path / "v.txt").read_text() == first


@pytest.fixture
def gensim(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How gensim was asked to train; what stands for it gives each word the vector 1, 2."""
    asked: list[dict[str, Any]] = []

    def train(sentences: Any, **how: Any) -> Any:
        asked.append(how | {"sentences": [list(sentences), list(sentences)]})
        counts, vectors = np.array([2, 1]), np.array([[1.0, 2.0]] * 2, dtype=np.float32)
        keyed = SimpleNamespace(
            index_to_key=["b", "a"], expandos={"count": counts}, vectors=vectors
        )
        return SimpleNamespace(wv=keyed)

    monkeypatch.setitem(sys.modules, "gensim", ModuleType("gensim"))
    monkeypatch.setitem(sys.modules, "gensim.models", SimpleNamespace(Word2Vec=train))
    return asked


@pytest.mark.parametrize("text", ["[]", "[" * 1500, "\\xff", '{"a', "RECIPE"])
def test_a_damaged_recipe_of_word_vectors_is_named(tmp_path: Path, text: str) -> None:
    wanted = WordVectors(text="a.txt", output="v.txt", width=4)
    if text == "RECIPE":  # what it says of the text
        text = json.dumps(wanted.model_dump(mode="json") | {"texts_were": [1]})
    (tmp_path / "v.txt.json").write_text(text)
    with pytest.raises(UserError, match=r"v\.txt\.json is damaged .* vectors are trained anew"):
        ensure_word_vectors(wanted, str(tmp_path), print)


def test_word_vectors_are_trained_as_they_are_described(
    tmp_path: Path, gensim: list[dict[str, Any]]
) -> None:
    for name, text in (("one", "a b\n\n"), ("two", "b\n")):
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in ("one", "two")]
    wanted = WordVectors(
        text=files, output="below/v.txt", width=2, epochs=7, window=3, min_count=6, seed=9
    )
    said: list[str] = []
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    (how,) = gensim
    assert how.pop("sentences") == [[["a", "b"], [], ["b"]]] * 2  # they are read several times
    # With more than one thread equal texts give other vectors.
    assert how == {"vector_size": 2, "epochs": 7, "window": 3, "min_count": 6, "seed": 9, "sg": 1,
                   "workers": 1}  # fmt: skip
    output = tmp_path / "below" / "v.txt"
    assert [line.split()[0] for line in output.read_text().splitlines()] == ["2", "b", "a"]
    assert said == [
        f"training vectors of {files[0]}, {files[1]}", f"2 vectors → {output}",
    ]  # fmt: skip


def test_word_vectors_of_a_text_that_has_changed_are_refused(
    tmp_path: Path, gensim: list[dict[str, Any]]
) -> None:
    text, said = tmp_path / "text", list[str]()
    text.write_text("a b\n")
    wanted = WordVectors(text=str(text), output="v.txt", width=2)
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    recipe = tmp_path / "v.txt.json"
    for change in ("c d\n", "a b c\n"):
        text.write_text(change)
        with pytest.raises(UserError, match=rf"v\.txt was made from .* changed since:\n  {text}"):
            ensure_word_vectors(wanted, str(tmp_path), said.append)
    text.unlink()
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    assert said[2:] == [f"whether the files of {tmp_path}/v.txt have changed is not known: "
                        f"{text} is not there"]  # fmt: skip
    # As an earlier version left it.
    text.write_text("c d\n")
    recipe.write_text(wanted.model_dump_json(indent=1) + "\n")
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    assert (len(gensim), len(said)) == (1, 3)
    recipe.write_text("")  # and where it was interrupted
    ensure_word_vectors(wanted, str(tmp_path), said.append)
    assert len(gensim) == 2


def test_a_study_over_files_that_have_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, vectors = tmp_path / "pairs.tsv", tmp_path / "v.txt"
    corpus.write_text("source\ttarget\n" + "a b\tc d\n" * 9)
    vectors.write_text("2 1\na 1\nb 2\n")
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ntrain: {max_steps: 9}\ncluster: {launcher: local}\n"
                    "data: {num_processes: 1}\n")  # fmt: skip
    corpora = {f"data.{split}": {"pairs": str(corpus)} for split in ("train", "validation", "test")}
    start = {"embedding.tables.source": {"pretrained": {"uri": str(vectors)}}}
    plain = {"set": corpora | start, "seeds": [4], "folder": str(tmp_path / "study"),
             "factors": [{"name": "a", "levels": [{"name": "b"}]}], "reference": None,
             "expectations": [], "measures": ["bleu"], "plot": None}  # fmt: skip
    wanted = load_study(written(tmp_path, **plain))
    assert isinstance(wanted, TrainingStudy)
    scored: list[str] = []

    def score(config: Any, on_event: Any) -> dict[str, Any]:
        with one_is_this_process(1):
            ensure_data(config, print)
        if not scored:
            scored.append("interrupted")
            raise RunStopped("asked to")
        scored.append(config.run.uri)
        return {"measures": {"bleu": 1.0}, "validations": [], "machine": MACHINE,
                "figures": {}}  # fmt: skip

    monkeypatch.setattr(study_run, "train_and_score", score)
    with pytest.raises(RunStopped):
        study_run.run_study(wanted, lambda event: None)
    vectors.write_text("2 1\nb 1\na 2\n")  # the run would go on with those that it has begun from
    with pytest.raises(UserError, match="changed since"):
        study_run.run_study(wanted, lambda event: None)
    vectors.write_text("2 1\na 1\nb 2\n")
    first = study_run.run_study(wanted, lambda event: None)
    assert study_run.run_study(wanted, lambda event: None) == first
    for file, other in ((vectors, "2 1\na 1\nb 3\n"), (corpus, "source\ttarget\na\tb\n")):
        as_it_was = file.read_text()
        file.write_text(other)
        with pytest.raises(UserError, match=rf"changed since:\n  {file}: "):
            study_run.run_study(wanted, lambda event: None)
        file.write_text(as_it_was)
    assert study_run.run_study(wanted, lambda event: None) == first
    assert len(scored) == 2


def test_half_made_word_vectors_are_made_again(
    tmp_path: Path, gensim: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("a b\n")
    first, other = (
        WordVectors(text=str(tmp_path / "text"), output="v.txt", width=2, epochs=n) for n in (1, 2)
    )
    ensure_word_vectors(first, str(tmp_path), print)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk gone")

    with monkeypatch.context() as failing:
        failing.setattr(word_vectors, "write_vectors", fail)
        with pytest.raises(OSError, match="disk gone"):
            ensure_word_vectors(other, str(tmp_path), print)
    ensure_word_vectors(first, str(tmp_path), print)
    assert len(gensim) == 3
    monkeypatch.setitem(sys.modules, "gensim", None)
    ensure_word_vectors(first, str(tmp_path), print)
    with pytest.raises(UserError, match="gensim is not installed"):
        ensure_word_vectors(other, str(tmp_path), print)


def test_a_factor_of_one_level_need_not_be_drawn(tmp_path: Path) -> None:
    one = {"name": "size", "levels": [{"name": "small"}]}
    found = load_study(written(tmp_path, factors=[*STUDY["factors"], one], expectations=[]))
    assert isinstance(found, TrainingStudy)
    assert combinations(found)[0].key == "1-k_random_small"


def test_a_run_is_trained_and_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ndata: {synthetic: {}}\ntrain: {max_steps: 9}\n"
                    "cluster: {launcher: local, device: cpu}\n")  # fmt: skip
    plain = {"set": {}, "seeds": [4], "folder": str(tmp_path / "study"), "reference": None,
             "factors": [{"name": "a", "levels": [{"name": "b"}]}], "expectations": [],
             "measures": ["bleu"], "plot": None}  # fmt: skip
    wanted = load_study(written(tmp_path, **plain))
    assert isinstance(wanted, TrainingStudy)
    (planned,) = planned_runs(wanted)
    run_uri = planned.config.run.uri
    shards = [ShardInfo("s", 30, 100, 170)]  # 170 tokens and 30 ends of sentences
    data = PreparedData(
        {}, {"source": 9, "target": 9}, True, {"train": Split(shards)}, folder_uri="there"
    )
    asked: list[Any] = []
    found = Evaluation(
        data_folder="there", split="test", step=4, loss=0.9, training_loss=0.75, perplexity=2.5,
        bleu=12.5, chrf=30.0, bleu_signature="how", against_exact=None, sentences=3,
        sentences_per_second=1.0, translations=[], scored=[],
    )  # fmt: skip
    result = TrainResult(run_uri, "there", 2, 0, True, 0, 1)

    def train(config: Any, *, force: bool, on_event: Any) -> TrainResult:
        on_event({"kind": "line", "text": "prepared"})
        asked.append(("train", config.run.uri, force))
        if result.stopped:
            raise TrainingStopped("stopped", result)
        return result

    def evaluate(config: Any, *, on_event: Any, **how: Any) -> Evaluation:
        on_event({"kind": "line", "text": "evaluated"})
        asked.append(("evaluate", config.run.uri, how))
        return found

    monkeypatch.setattr(study_scored, "train", train)
    monkeypatch.setattr(study_scored, "evaluate", evaluate)
    monkeypatch.setattr(PreparedData, "read", lambda folder: {"there": data}[folder])
    said: list[str] = []

    def run() -> list[Outcome]:
        return study_run.run_study(wanted, lambda event: said.append(event["text"]))

    with pytest.raises(RunStopped, match="stopped as asked after step 2"):
        run()
    assert asked == [("train", run_uri, True)]
    result = replace(result, steps=9, stopped=False)
    with monkeypatch.context() as patched:  # asked in its last step
        patched.setattr(study_scored, "taken_signal", lambda: 15)
        with pytest.raises(RunStopped, match="stopped as asked after step 9"):
            run()
    assert [what for what, *_ in asked] == ["train", "train"]
    info = {
        "model.x": (3, 5),
        "table.a.weight": (7, 2),
        "table.a.momentum1": (7,),
        "optimizer.y": (3,),
    }
    manifest = SimpleNamespace(
        tensors={name: SimpleNamespace(shape=list(shape)) for name, shape in info.items()}
    )
    monkeypatch.setattr(study_scored, "name_of_step", lambda uri, step: (uri, step))
    monkeypatch.setattr(
        study_scored, "read_manifest", lambda store, name: {(run_uri, 4): manifest}[name]
    )
    with MetricsLog(run_uri, 0) as log:
        log.write(2, tokens_per_second=100.0, step_seconds=0.5)
        log.write(2, validation_loss=math.nan)
        log.write(4, tokens_per_second=200.0, step_seconds=0.5)
        log.write(4, validation_loss=1.25)
    asked.clear()
    (outcome_,) = run()
    how = {"training_tokens": 20_000, "data_folder": "there"}
    assert asked == [("train", run_uri, True), ("evaluate", run_uri, how)]
    assert outcome_.measures == {
        "validation_perplexity": math.exp(1.25), "bleu": 12.5, "chrf": 30.0, "gap": 0.5,
        "parameters": 15 + 14, "tokens_per_second": 150.0, "sentences_per_second": 150 * 30 / 200,
        "epochs": 9 * 75 / 200, "best_step": 4,
    }  # fmt: skip
    assert (outcome_.levels, outcome_.seed) == ({"a": "b"}, 4)
    assert outcome_.validations == [(4, 1.25)]
    assert outcome_.machine["cores"] >= 1
    assert said[-3:] == [f"run 1 of 1: {planned.name}", "prepared", "evaluated"]
    asked.clear()
    assert run() == [outcome_]
    assert asked == []


def test_the_plot_has_a_line_for_each_level(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    draw_study(study(tmp_path), OUTCOMES, str(path))
    text = path.read_text()
    for word in ("random", "vectors", "pairs", "1,000", "5,000", "test BLEU"):
        assert f">{word}<" in text


def test_levels_without_a_place_stand_side_by_side(tmp_path: Path) -> None:
    plot = {"x": "start", "label": "start", "measure": "bleu", "lines": "pairs"}
    found = load_study(written(tmp_path, plot=plot))
    assert isinstance(found, TrainingStudy)
    path = tmp_path / "x.svg"
    draw_study(found, OUTCOMES, str(path))
    text = path.read_text()
    for word in ("random", "vectors", "1 k", "5 k", "test BLEU"):
        assert f">{word}<" in text


def test_the_page_of_keys_is_that_of_the_study() -> None:
    path = ROOT / "docs" / "studies" / "keys.md"
    command = "dist-embed config reference --study > docs/studies/keys.md"
    assert path.read_text() == study_keys_page(), f"write it again: {command}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "trainin"}, "kind: 'trainin' is not allowed: training or scaling"),
        ({"kind": "one_hot"}, "is a measurement now: dist-embed bench one-hot"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 2, 1]}, r"seeds: \[1, 2, 1\] has one twice"),
        ({"factors": [*STUDY["factors"], STUDY["factors"][0]]}, "two factors have one name"),
        ({"factors": [*STUDY["factors"], {"name": "c", "levels": [{"name": "x"}, {"name": "y"}]}]},
         "factor 'c' is neither `x` nor `lines`"),
        ({"measures": ["bleus"]}, r"measures\.0: 'bleus' is not .*; Columns of the table\.$"),
        ({"factors": [{"name": "a", "level": []}]}, r"factors\.0\.levels: missing; The choices\."),
        ({"factors": [{"name": "a", "levels": [{"nme": "x"}]}]},
         r"factors\.0\.levels\.0\.nme: unknown key .*did you mean 'factors\.0\.levels\.0\.name'\?"),
        ({"plot": STUDY["plot"] | {"lable": "x"}}, r"plot\.lable: .* mean 'plot\.label'\?"),
        ({"set": 3}, r"set: 3 is not allowed: .*; Keys of the configuration for all runs\."),
        ({"expectations": [STUDY["expectations"][0] | {"better": {"pairs": 1}}]},
         r"better\.pairs: 1 is not allowed: .*; see docs/studies/keys\.md$"),
        ({"factors": [STUDY["factors"][0], STUDY["factors"][1] | {"name": "other"}],
          "reference": None, "measures": ["bleu"], "expectations": []},
         "plot: there is no factor 'start'"),
        ({"colour": 1}, "colour"),
        ({"reference": None}, "measures: steps_to_reference needs `reference`"),
        ({"reference": None, "measures": ["bleu"]},
         r"expectations\.4\.measure: steps_to_reference needs `reference`"),
        ({"reference": None, "measures": ["bleu"], "expectations": [],
          "plot": STUDY["plot"] | {"measure": "steps_to_reference"}},
         r"plot\.measure: steps_to_reference needs `reference`"),
        ({"reference": {"factor": "start", "level": "x"}}, "reference: there is no 'start' 'x'"),
        ({"plot": STUDY["plot"] | {"x": "no"}}, "plot: there is no factor 'no'"),
        ({"plot": STUDY["plot"] | {"x": "start", "lines": "pairs"}},
         "plot: 'random' of 'start' needs `x`"),
        ({"factors": [STUDY["factors"][0], {"name": "start", "levels": [
            {"name": "random", "x": 1}, {"name": "vectors"}]}],
          "plot": {"x": "start", "label": "s", "measure": "bleu", "lines": "pairs"}},
         "plot: 'vectors' of 'start' needs `x`"),
        ({"expectations": [STUDY["expectations"][0] | {"better": {"pairs": "1 k"}}]},
         "no level of start"),
        ({"factors": [{"name": "a", "levels": [{"name": "x"}, {"name": "x"}]}]}, "two levels"),
        ({"factors": [{"name": "a", "levels": [{"name": "x-"}, {"name": "X"}]}]},
         "factor 'a' has two levels that are both 'x' in names of folders"),
    ],
)  # fmt: skip
def test_mistakes_in_a_study_are_named(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(written(tmp_path, **changes))
    with pytest.raises(ConfigError, match="cannot read study"):
        load_study(str(tmp_path / "none.yaml"))


def test_runs_are_counted_and_not_made_up(tmp_path: Path) -> None:
    factors = [{"name": f"{n}", "levels": [{"name": "x"}, {"name": "y"}]} for n in range(60)]
    plain = {"factors": factors, "expectations": [], "reference": None, "measures": ["bleu"],
             "plot": None, "seeds": [1, 2, 3]}  # fmt: skip
    assert number_of_runs(load_study(written(tmp_path, **plain))) == 3 * 2**60


def test_the_smallest_study_is_one_and_nothing_smaller(tmp_path: Path) -> None:
    smallest: dict[str, Any] = {
        "title": "t", "question": "q", "folder": "f", "base": "b", "seeds": [1],
        "factors": [{"name": "n", "levels": [{"name": "l"}]}], "measures": ["bleu"],
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(smallest))
    load_study(str(path))
    for key, value in smallest.items():
        path.write_text(yaml.safe_dump(smallest | {key: type(value)()}))
        with pytest.raises(ConfigError, match=key):
            load_study(str(path))
    for factor in ({"name": "", "levels": [{"name": "l"}]}, {"name": "n", "levels": []},
                   {"name": "n", "levels": [{"name": ""}]}):  # fmt: skip
        path.write_text(yaml.safe_dump(smallest | {"factors": [factor]}))
        with pytest.raises(ConfigError, match=r"factors\.0"):
            load_study(str(path))


def test_what_is_missing_in_a_study_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in STUDY.items() if k != "question"}))
    with pytest.raises(ConfigError) as caught:
        load_study(str(path))
    assert str(caught.value) == f"{path}: question: missing; What it is about."
    for text in ("7", "- 7"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"study\.yaml.*expected a mapping"):
            load_study(str(path))


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_base_without_data_to_score_is_refused_before_anything_is_trained(
    tmp_path: Path, missing: str
) -> None:
    corpora = {s: {"source": "a", "target": "b"} for s in ("train", "validation", "test")}
    del corpora[missing]
    base = {"run": {"uri": "x"}, "data": corpora, "train": {"max_steps": 9}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    plain = {"set": {}, "factors": [STUDY["factors"][0]], "expectations": [], "plot": None}
    found = load_study(written(tmp_path, **plain, reference=None, measures=["bleu"]))
    assert isinstance(found, TrainingStudy)
    with pytest.raises(ConfigError, match=rf"base\.yaml: data\.{missing}: missing"):
        planned_runs(found)


def test_a_base_beside_a_study_at_a_url_is_read_as_before() -> None:
    storage.write_text("memory://b/c.yaml", "")
    assert base_of("memory://studies/s.yaml", "../b/c.yaml") == "memory://b/c.yaml"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return drawn_axes(monkeypatch, study_plot)


def test_a_point_is_the_mean_with_a_bar_of_a_deviation(tmp_path: Path, drawn: list[Any]) -> None:
    draw_study(study(tmp_path), OUTCOMES, str(tmp_path / "x.svg"))
    (axes,) = drawn
    random, vectors = axes.containers
    for bar, means, spread, style, marker, color in (
        (random, [11.0, 30.0], [1.0, 0.0], "-", "o", INK),
        (vectors, [21.0, 30.0], [1.0, 0.0], "--", "s", GREY),
    ):
        line, _, (bars,) = bar.lines
        assert (list(line.get_xdata()), list(line.get_ydata())) == ([1000.0, 5000.0], means)
        ends = [[float(y) for _, y in segment] for segment in bars.get_segments()]
        assert ends == [[m - s, m + s] for m, s in zip(means, spread, strict=True)]
        assert (line.get_linestyle(), line.get_marker(), line.get_color()) == (style, marker, color)
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == [1000, 5000]
    assert {(text.get_text(), *text.xy) for text in axes.texts} == {
        ("random", 5000.0, 30.0), ("vectors", 5000.0, 30.0)
    }  # fmt: skip
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("pairs", "test BLEU")
    linear = load_study(written(tmp_path, plot=STUDY["plot"] | {"logarithmic": False}))
    draw_study(linear, OUTCOMES, str(tmp_path / "x.svg"))  # type: ignore[arg-type]
    assert (drawn[1].get_xscale(), list(drawn[1].get_xticks())) == ("linear", [1000, 5000])
    plot = {"x": "start", "label": "start", "measure": "bleu", "lines": "pairs"}
    by_name = load_study(written(tmp_path, plot=plot))
    draw_study(by_name, OUTCOMES, str(tmp_path / "x.svg"))  # type: ignore[arg-type]
    first = drawn[2].containers[0].lines[0]
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0.0, 1.0], [11.0, 21.0])
    assert first.get_linestyle() == "None"  # no line leads from one to the next
    assert [text.get_text() for text in drawn[2].get_xticklabels()] == ["random", "vectors"]


def lacking(bleu: dict[int, float]) -> list[Outcome]:
    """The outcomes, some (by their place) with another BLEU."""
    return [replace(one, measures=one.measures | {"bleu": bleu.get(number, one.measures["bleu"])})
            for number, one in enumerate(OUTCOMES)]  # fmt: skip


def test_what_is_missing_is_drawn_as_missing(tmp_path: Path, drawn: list[Any]) -> None:
    path = str(tmp_path / "x.svg")

    def texts(axes: Any) -> set[tuple[str, float]]:
        return {(text.get_text(), text.xy[0]) for text in axes.texts}

    def marks(line: Any) -> list[tuple[float, float]]:
        return [(x, y) for x, y in line.get_xydata().tolist() if not math.isnan(y)]

    plot = STUDY["plot"] | {"measure": "steps_to_reference"}
    never = load_study(written(tmp_path, plot=plot))
    assert isinstance(never, TrainingStudy)
    draw_study(never, OUTCOMES, path)
    (axes,) = drawn
    random, vectors = (container.lines[0] for container in axes.containers)
    assert marks(random) == [(1000.0, 70 / 3), (5000.0, 20.0)]
    assert marks(vectors) == []  # one of three never arrived with 1 k pairs, none with 5 k
    (alone,) = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert marks(alone) == [(1000.0, 10.0), (1000.0, 20.0)]
    assert (alone.get_marker(), alone.get_color()) == (vectors.get_marker(), GREY)
    # The line's own name stands beside its last mark, and beside what is told above the axes.
    assert texts(axes) == {
        ("random", 5000.0), ("vectors", 1000.0), ("vectors:", 0),
        ("1 of 3 never", 1000.0), ("never", 5000.0),
    }  # fmt: skip
    assert axes.get_xlim()[0] < 1000 < 5000 < axes.get_xlim()[1]

    draw_study(study(tmp_path), lacking({9: math.nan, 10: math.nan, 11: math.nan}), path)
    axes = drawn[1]
    assert texts(axes) == {
        ("random", 5000.0), ("vectors", 1000.0), ("vectors:", 0), ("no value", 5000.0)
    }  # fmt: skip
    draw_study(study(tmp_path), lacking(dict.fromkeys(range(12), math.nan)), path)
    axes = drawn[2]
    assert [text.get_text() for text in axes.texts].count("no value") == 4
    assert list(axes.get_yticks()) == []
    assert axes.get_xlim()[0] < 1000 < 5000 < axes.get_xlim()[1]


def test_the_command_writes_the_page_of_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    given = written(tmp_path, folder=str(tmp_path / "s"))
    monkeypatch.setattr("sys.argv", ["dist-embed", "study", "a b.yaml"])
    shown: list[Any] = []

    def run(wanted: Any, on_event: Any) -> list[Outcome]:
        on_event({"kind": "line", "text": "run 1 of 12"})
        shown.append(wanted)
        return OUTCOMES

    monkeypatch.setattr("dist_embed.study.run.run_study", run)
    assert main(["study", given]) == 0
    page = tmp_path / "s" / "page.md"
    few, *shown_lines = capsys.readouterr().out.splitlines()
    assert few.startswith("3 seeds cannot tell any difference from chance here")
    assert shown_lines == [
        "run 1 of 12",
        "1 k, vectors: steps to reference: 1 of 3 never",
        "5 k, vectors: steps to reference: never",
        f"→ {page}",
    ]
    wanted = study(tmp_path).model_copy(update={"folder": str(tmp_path / "s")})
    command = "bash launch/run.sh study 'a b.yaml'"
    assert shown == [wanted]
    assert page.read_text() == study_page(wanted, OUTCOMES, command=command, plot_name="page.svg")
    assert (tmp_path / "s" / "page.svg").exists()
    other = tmp_path / "other.md"
    other.symlink_to("elsewhere.md")  # as every program, it writes what the link leads to
    assert main(["study", written(tmp_path, plot=None), "--output", str(other)]) == 0
    assert "![" not in (tmp_path / "elsewhere.md").read_text()
    assert other.is_symlink()
    assert not other.with_suffix(".svg").exists()
    for name in ("x.txt", "gone/x.md"):
        assert main(["study", given, "--output", str(tmp_path / name)]) == 2
        assert "is not allowed: a .md file in a folder" in capsys.readouterr().err
    assert main(["study", written(tmp_path, folder="memory://s")]) == 2
    assert "--output is needed: memory://s is no folder" in capsys.readouterr().err
    assert len(shown) == 2


def test_runs_whose_best_was_not_saved_before_are_other_runs_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {uri: x}\ndata: {synthetic: {}}\ntrain: {max_steps: 9}\n")
    levels = [
        {"name": f"{number}", "set": {"train.evaluate_every": 4, "checkpoint.every_steps": every}}
        for number, every in enumerate((2, 3, 0))
    ]
    plain = {"set": {}, "factors": [{"name": "s", "levels": levels}], "seeds": [7],
             "expectations": [], "reference": None, "measures": ["bleu"], "plot": None}  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found = load_study(written(tmp_path, folder="studies/f", **plain))
    assert isinstance(found, TrainingStudy)
    aligned, *others = (run.name.rsplit("_", 1)[1] for run in planned_runs(found))
    monkeypatch.setattr(study_planned, "_BEST_IS_SAVED", study_planned.TRAINING)
    before = [run.name.rsplit("_", 1)[1] for run in planned_runs(found)]
    assert before[0] == aligned
    assert all(one != other for one, other in zip(before[1:], others, strict=True))
