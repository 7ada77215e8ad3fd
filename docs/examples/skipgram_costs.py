"""Words a second and memory of `skipgram.py`, beside gensim's word2vec on the same text.

As measured for docs/benchmarks/skipgram.md::

    python docs/examples/skipgram_costs.py speed
    python docs/examples/skipgram_costs.py memory --rows 10000000 --width 64 --steps 5

Every measurement has processes of its own, one thread for each worker of either side. **Speed**:
in turns, the generated text of `skipgram_quality.py`; the time of training, with the making of our
tables and our checkpoint at the end, without reading the text. Of both sides the words that have a
vector are counted, also where subsampling leaves them out, rarer ones not. **Memory**: a text of as
many words as rows, each once; a few steps, and a save. It is a process's private memory (RssAnon of
Linux): what it holds without files, such as libraries, that are mapped; of our workers the fullest.
"""

import json
import os
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from dist_embed.cli.table import print_table

# Libraries of one side are imported by its processes alone: they take memory too.
GIB = 2**30
OURS, GENSIM = "skipgram.py", "gensim"


class PrivateMemory:
    """Looks at this process's private memory ten times a second."""

    def __init__(self) -> None:
        self._most = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def most(self) -> int:
        """Bytes at most since the last call."""
        found, self._most = max(self._most, _private_bytes()), 0
        return found

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, _private_bytes())
            time.sleep(0.1)


def _private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measured_gensim(args: Namespace, memory: PrivateMemory) -> dict[str, Any]:
    """Words, seconds and the most bytes while it reads words, and from there on."""
    from gensim.models import Word2Vec

    model = Word2Vec(
        sg=1, vector_size=args.width, window=args.window, workers=args.workers,
        min_count=args.min_count, sample=args.subsample, seed=1,
    )  # fmt: skip
    model.build_vocab(corpus_file=args.text)
    model.syn1neg[:] = 0  # Linux counts no page that nobody has written to
    reading = memory.most()
    # Gensim goes by all words of the text, of which it trains those with a vector.
    trained = {"corpus_file": args.text, "total_words": model.corpus_total_words}
    words = sum(int(model.wv.get_vecattr(word, "count")) for word in model.wv.index_to_key)
    if args.steps:  # a few lines: only what it holds is asked
        trained = {"corpus_iterable": [list(model.wv.index_to_key[:1000])]}
    started = time.perf_counter()
    model.train(**trained, total_examples=model.corpus_count, epochs=args.epochs)
    seconds = time.perf_counter() - started
    if args.steps:
        model.save(f"{args.out}/model")
    return {"words": words, "seconds": seconds, "reading": reading, "training": memory.most()}


def measured_ours(args: Namespace, memory: PrivateMemory) -> dict[str, Any]:
    """The same of one of our workers."""
    import skipgram

    text = skipgram.read_monolingual(args.text, min_count=args.min_count)
    reading, every_batch = memory.most(), skipgram.batches

    def first_batches(*given: Any) -> Iterator[list[Any]]:
        return islice(every_batch(*given), args.steps or None)

    skipgram.batches = first_batches
    with skipgram.joined_group() as group, skipgram.errors_shared(group):
        started = time.perf_counter()
        skipgram.train(text, args, group)
        seconds = time.perf_counter() - started
    words = int(text.counts.sum())
    return {"words": words, "seconds": seconds, "reading": reading, "training": memory.most()}


def one(way: str, workers: int, given: dict[str, Any]) -> dict[str, Any]:
    """Measure one way in processes of its own; of several the fullest counts, and the slowest."""
    from skipgram import DEFAULTS

    with TemporaryDirectory() as out:
        settings = {name.replace("-", "_"): value for name, value in DEFAULTS.items()}
        settings |= given | {"way": way, "workers": workers, "out": out}
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        command = [sys.executable, *(start if way == OURS else []), __file__]
        subprocess.run(
            [*command, "one", json.dumps(settings)], check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        found = [json.loads(path.read_text()) for path in Path(out).glob("worker-*.json")]
    return {key: max(worker[key] for worker in found) for key in found[0]}


def measure_here(settings: str) -> None:
    """What a process of `one` does."""
    args, memory = Namespace(**json.loads(settings)), PrivateMemory()
    found = (measured_ours if args.way == OURS else measured_gensim)(args, memory)
    path = Path(args.out, f"worker-{os.environ.get('RANK', 0)}.json")
    path.write_text(json.dumps(found))


def speed(args: Namespace) -> None:
    """In turns, so that what else the machine does falls on all alike."""
    from skipgram_quality import generated

    seen: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        generated(text, args.nouns, args.sentences)
        given = {"text": str(text), "width": args.width, "epochs": args.epochs}
        for _ in range(args.rounds):
            for way in (GENSIM, OURS):
                for workers in (1, 2):
                    found = one(way, workers, given | {"steps": 0})
                    seen.setdefault((way, workers), []).append(found)
    rows = []
    for (way, workers), found in seen.items():
        rates = [each["words"] * args.epochs / each["seconds"] for each in found]
        most = max(max(each["reading"], each["training"]) for each in found)
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        rows.append([way, str(workers), f"{median(rates):,.0f}", spread, f"{most / GIB:.2f}"])
    print(f"{found[0]['words']:,} words, width {args.width}, {args.rounds} rounds in turns")
    print_table(["", "threads or workers", "words/s", "range", "GiB of each process"], rows)


def memory(args: Namespace) -> None:
    """Of a vocabulary as large as the tables."""
    rows = []
    with TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        with text.open("w") as file:
            for start in range(0, args.rows, 10):
                line = range(start, min(start + 10, args.rows))
                file.write(" ".join(f"w{number:08d}" for number in line) + "\n")
        given = {"text": str(text), "width": args.width, "epochs": 1, "min_count": 1}
        given["steps"] = args.steps
        for way, workers, saving in (
            (GENSIM, 1, ""), (OURS, 1, "in_place"), (OURS, 2, "in_place"), (OURS, 2, "behind"),
        ):  # fmt: skip
            found = one(way, workers, given | {"saving": saving})
            sizes = [f"{found[phase] / GIB:.2f}" for phase in ("reading", "training")]
            rows.append([way, str(workers), saving, *sizes])
            print(*rows[-1], flush=True)
    print(f"{args.rows:,} words, two tables of width {args.width}: GiB of each process, at most")
    print_table(["", "processes", "saving", "reading words", "training and saving"], rows)


def main() -> None:
    """Measure."""
    parser = ArgumentParser()
    parser.add_argument("what", choices=["speed", "memory", "one"])
    parser.add_argument("settings", nargs="?", help="for `one` alone, which the others call")
    sizes = {"rounds": 3, "nouns": 20_000, "sentences": 50_000, "epochs": 1}
    for name, default in (sizes | {"rows": 10_000_000, "width": 128, "steps": 5}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.what == "one":
        measure_here(args.settings)
    else:
        {"speed": speed, "memory": memory}[args.what](args)


if __name__ == "__main__":
    main()
