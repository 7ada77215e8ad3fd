"""A study of scaling, with real runs."""

from __future__ import annotations

from pathlib import Path

import yaml

from dist_embed.study.results import read_results
from tests.integration.conftest import Command


def test_a_user_goes_from_plan_to_study_to_report(
    tmp_path: Path, config: str, dist_embed: Command
) -> None:
    values = yaml.safe_load(Path(config).read_text())
    values["data"] = {"words": {"sentences": 120, "length": 9}}
    values["tokenizer"] = {"vocab_size": 300}
    values["model"] |= {"output": "sampled", "num_samples": 20}
    values["train"] |= {"max_steps": 3, "translate_every": 0}
    Path(config).write_text(yaml.safe_dump(values))
    study = tmp_path / "study.yaml"
    folder = tmp_path / "study"
    study.write_text(
        yaml.safe_dump(
            {"kind": "scaling", "title": "Workers", "question": "How fast?", "base": config,
             "folder": str(folder), "grid": {"workers": [1, 2]},
             "simulate": {"workers": [1, 20], "machine": "8xh100"}}
        )
    )  # fmt: skip
    assert "2 workers: " in dist_embed("plan", config, "--workers", "1,2").stdout
    dist_embed("study", str(study))
    one, two, *simulated = read_results(str(folder))
    assert [len(row["memory_bytes"]) for row in (one, two)] == [1, 2]
    for row in (one, two):
        assert (row["state"], row["steps"], row["target_words"]) == ("done", 3, 300)
        assert row["tokens_per_second"] > 0
        assert row["phases"]["encoder"] > 0
        assert 0 < row["step_seconds_p10"] <= row["step_seconds_p90"]
        assert row["planned_step_seconds"] > 0
        assert row["planned_phases"].keys() <= row["phases"].keys()
        assert row["training_loss"] > 0
        assert min(row["rows_requested"]) > 0
        assert row["efficiency"] is not None or row["oversubscribed"]
        assert row["versions"]["torch"]
        assert 0 <= row["exchange_share"] < 1
    assert len(list((folder / "data").iterdir())) == 1  # both were trained on the same
    assert [row["state"] for row in simulated] == ["simulated"] * 2
    page = (folder / "page.md").read_text()
    assert "Nothing below was measured" in page
    assert (folder / "page-simulated.svg").exists()
    metrics = [path.read_bytes() for path in sorted(folder.glob("runs/*/metrics.jsonl"))]
    dist_embed("study", str(study))  # nothing is trained again
    assert [p.read_bytes() for p in sorted(folder.glob("runs/*/metrics.jsonl"))] == metrics
    page = tmp_path / "page.html"
    dist_embed("report", str(study), "-o", str(page))
    for title in ("Step time: planned and measured", "Where a step&#x27;s time goes", "SIMULATED"):
        assert title in page.read_text()
