"""The stages of ``launch/gpu.sh``: their commands, on a GPU and, at small sizes, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Work:
    """What a stage's commands need to know: the device, a folder for the length of the command, one
    for what stays, and that of the corpus.
    """

    device: Literal["cuda", "cpu"]
    folder: Path
    out: Path
    multi30k: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """What is added to that of the commands: configurations read it."""
        return {"MULTI30K_DIR": str(self.multi30k)} if self.multi30k else {}

    @property
    def figures(self) -> Path:
        """Folder of the figures that commands write: one JSON file each."""
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def by_device(self, cuda: str, cpu: str) -> list[str]:
        """Arguments, by the device."""
        return (cuda if self.device == "cuda" else cpu).split()


Commands = Callable[[Work], list[list[str]]]


@dataclass(frozen=True)
class Stage:
    """Commands that show one thing, within a number of seconds.

    needed: nothing else can be shown where this one fails. counts: the last line that its commands
    print counts what they did.
    """

    name: str
    about: str
    seconds: int
    commands: Commands
    needed: bool = False
    counts: bool = False


def _dist_embed(work: Work, figures: str | None, *arguments: str) -> list[str]:
    """A command of ours; the figures that it writes are found under a name."""
    written = ["--output", str(work.figures / f"{figures}.json")] if figures else []
    return [sys.executable, "-m", "dist_embed.cli.main", *arguments, *written]


def _bench(work: Work, figures: str, kind: str, *arguments: str) -> list[str]:
    return _dist_embed(work, figures, "bench", kind, "--device", work.device, *arguments)


def _configuration(work: Work, name: str) -> list[str]:
    """Arguments: a configuration, and what differs from it, on a GPU to be the base Transformer
    (Vaswani et al. 2017).
    """
    data, tokens = "", "50000"
    if work.device == "cpu":
        data, tokens = "data.synthetic.sentences=300 data.synthetic.held_out=20", "500"
    elif work.multi30k is None:
        data = "data.synthetic.sentences=30000"
    config = "quickstart" if data else "multi30k_en_de"
    width, inner, layers, heads = work.by_device("512 2048 6 8", "16 32 1 2")
    return [
        f"configs/{config}.yaml", *data.split(), f"data.uri={work.folder}/data",
        f"run.uri={work.folder}/{name}", f"embedding.width={width}", f"model.width={width}",
        f"model.feed_forward={inner}", f"model.heads={heads}", f"model.encoder_layers={layers}",
        f"model.decoder_layers={layers}", "model.dropout=0.1", "model.share_embeddings=all",
        f"train.batch_tokens={tokens}", f"train.precision={work.by_device('bf16', 'fp32')[0]}",
        f"cluster.device={work.device}", "cluster.num_workers=1", "cluster.launcher=local",
    ]  # fmt: skip


def _device(work: Work) -> list[list[str]]:
    return [[sys.executable, "-c", _VERSIONS, work.device]]


_VERSIONS = """
import sys
import torch, torchrec, fbgemm_gpu
from dist_embed.bench.report import machine
from dist_embed.parallel.device import device_name, resolve_device
device = torch.device(resolve_device(sys.argv[1]))
for what, found in machine(device_name(device)).items():
    print(f"{what}: {found}")
print("CUDA:", torch.version.cuda, "NCCL:", torch.cuda.is_available() and torch.cuda.nccl.version())
torch.ones(1000, device=device).sum().item()
"""


def _tests(work: Work) -> list[list[str]]:
    processes = "8" if work.device == "cuda" else "0"
    return [[
        sys.executable, "-m", "tests.gpu.run", "--device", work.device, "--json",
        str(work.figures / "tests.json"), "-q", "-n", processes, "--dist", "loadgroup",
        "--timeout", "90", "--timeout-method", "thread", "--disable-warnings", "tests/gpu",
    ]]  # fmt: skip


_FEW_LOOKUPS = "--rows 20000 --ids 3000 --width 16 --repeats 2"


def _lookup(work: Work) -> list[list[str]]:
    """A command for each case that may fail by itself."""
    one_million = "--rows 20000000 --ids 1000000 --width 128"
    public = "--rows 16800000 --ids 1048570 --width 128 --draw power-law --optimizer"
    cases = {
        "lookup": (one_million, _FEW_LOOKUPS),
        "lookup_public": (
            f"{public} sgd rowwise_adagrad",
            f"{_FEW_LOOKUPS} --draw power-law --optimizer sgd rowwise_adagrad",
        ),
        "lookup_512": ("--rows 5000000 --ids 250000 --width 512", _FEW_LOOKUPS),
        "lookup_adam": (f"{public} adam", f"{_FEW_LOOKUPS} --optimizer adagrad"),
        "lookup_fp16": (f"{one_million} --weights fp16", _FEW_LOOKUPS),
    }
    return [_bench(work, name, "lookup", *work.by_device(*case)) for name, case in cases.items()]


def _speed(work: Work) -> list[list[str]]:
    trace = str(work.out / "profile")
    steps = work.by_device("--steps 5", "--steps 2")
    return [
        _baseline(work, "speed"),
        _dist_embed(
            work, "step", "bench", "step", "--profile", trace, *steps, *_configuration(work, "step")
        ),
    ]


def _baseline(work: Work, figures: str, *options: str) -> list[str]:
    if work.device == "cuda" and not work.multi30k:
        figures += "_generated"  # its few words make it faster: no target is told of it
    rounds = work.by_device("--rounds 3 --steps 20", "--rounds 1 --steps 20")
    run = _configuration(work, figures)
    return _dist_embed(work, figures, "bench", "baseline", *options, *rounds, *run)


def _compiled(work: Work) -> list[list[str]]:
    # On the CPU the compiler takes minutes.
    return [_baseline(work, "compiled", "--compile")] if work.device == "cuda" else []


def _output(work: Work) -> list[list[str]]:
    """A command for each case that may fail by itself."""
    exact = "--tokens 8192 --width 2304 --rows 256000 --logits-block-mib"
    few = "--tokens 64 --width 16 --rows 500 --repeats 2"
    cases = {
        "output": (f"{exact} auto", f"{few} --logits-block-mib auto"),
        "output_blocks": (f"{exact} 1024 256 64 32", f"{few} --logits-block-mib 0.01"),
        "sampled": (
            "--tokens 8192 --width 512 --logits-block-mib --sampled-rows 1000000 20000000",
            f"{few} --logits-block-mib --sampled-rows 1000 --samples 50",
        ),
    }
    return [_bench(work, name, "output", *work.by_device(*case)) for name, case in cases.items()]


def _tiers(work: Work) -> list[list[str]]:
    # Managed memory stays well below what is free on the card. Few wide rows: FBGEMM makes a Python
    # list of all rows for its cache.
    most = "--fill 0.55 --ids 25000 --width 512 --memory device uvm uvm_caching --repeats 10"
    return [_bench(work, "tiers", "lookup", "--draw", "zipf", *work.by_device(most, _FEW_LOOKUPS))]


def _vocabulary(work: Work) -> list[list[str]]:
    most = "--words 100000 1000000 20000000 --widths 128 --tokens 8192 --against 0 --rounds 5"
    few = "--words 600 900 --widths 8 --against 0 --tokens 64 --samples 50 --steps 2 --rounds 1"
    return [_bench(work, "vocabulary", "vocabulary", "--workers", "1", *work.by_device(most, few))]


def _checkpoint(work: Work) -> list[list[str]]:
    # 4.04 GiB: above a power of two, to which PyTorch rounds pinned memory up: the worst case.
    sizes = work.by_device("--rows 8400000 --width 128", "--rows 2000 --width 8")
    return [
        _bench(
            work, "checkpoint", "checkpoint", str(work.folder / "store"), "--workers", "1",
            "--rounds", "1", *sizes,
        )
    ]  # fmt: skip


def _train(work: Work) -> list[list[str]]:
    half, first, more = work.by_device("50 100 120", "5 10 12")
    # Rates that do not depend on where a run ends, so that its loss goes on.
    rates = "train.schedule=inverse_sqrt train.warmup_steps=20 train.learning_rate=1e-3"
    train = [
        "train", *_configuration(work, "run"), *rates.split(), "embedding.schedule=constant",
        "train.log_every=5", f"train.evaluate_every={half}", f"train.translate_every={first}",
        f"checkpoint.every_steps={half}", *work.by_device("", "search.beam=1"),
    ]  # fmt: skip
    return [
        _dist_embed(work, None, *train, f"train.max_steps={first}"),
        _dist_embed(work, None, *train, f"train.max_steps={more}"),
        _dist_embed(work, None, "history", f"{work.folder}/run"),
    ]


STAGES = (
    Stage("device", "the device, versions", 120, _device, needed=True),
    Stage("tests", "kernels, parity with the CPU, all else in tests/gpu", 180, _tests, counts=True),
    Stage("lookup", "lookup and update beside a copy and FBGEMM's kernel", 120, _lookup),
    Stage("speed", "the base Transformer beside plain DDP; its profile", 120, _speed),
    Stage("output", "the output layers beside F.cross_entropy", 120, _output),
    Stage("tiers", "tables in host memory", 100, _tiers),
    Stage("vocabulary", "a step by the size of the vocabulary", 60, _vocabulary),
    Stage("checkpoint", "save and load 4 GiB", 100, _checkpoint),
    Stage("train", "a run, and the same run resumed", 120, _train),
    Stage("compiled", "`speed` with a plain model under torch.compile", 180, _compiled),
)
