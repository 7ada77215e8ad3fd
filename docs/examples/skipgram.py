"""Word vectors from plain text by skip-gram, on any number of workers.

From its vector each word predicts those around it (Mikolov et al. 2013, arXiv 1301.3781), here by a
sampled softmax. Both tables are split by rows over the workers. Started again, on any number of
workers, it goes on from its newest checkpoint::

    python docs/examples/skipgram.py --text 'corpus/*.txt.gz' --out vectors
    torchrun --nproc-per-node 4 docs/examples/skipgram.py --text 'corpus/*.txt.gz' --out vectors
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dist_embed.checkpoint.of_tables import Checkpoints
from dist_embed.data.monolingual import MonolingualText, read_monolingual
from dist_embed.embedding.row_order import RowOrder
from dist_embed.embedding.sharded_tables import ShardedTables, Table
from dist_embed.model.output_layer import SampledSoftmax
from dist_embed.model.sampler import UnigramSampler
from dist_embed.parallel.errors import errors_shared
from dist_embed.parallel.group import Group, joined_group
from dist_embed.vectors.write import Block, write_vectors

DEFAULTS = {"width": 128, "window": 5, "epochs": 5, "batch": 4096, "negatives": 256, "seed": 1}
DEFAULTS |= {"min-count": 5, "subsample": 1e-3, "rate": 0.1, "save-every": 1000, "saving": "behind"}


def batches(text: MonolingualText, args: Namespace, epoch: int, start: int) -> Iterator[list]:
    """From batch ``start`` on all workers' pairs of a word and one around it, equal on each."""
    # Frequent words are left out by chance (arXiv 1310.4546, section 2.3).
    ratio = args.subsample * text.counts.sum() / text.counts
    kept = np.random.default_rng([args.seed, epoch]).random(len(text.ids))
    kept = kept < np.minimum(1.0, np.sqrt(ratio) + ratio)[text.ids]
    line = np.searchsorted(text.line_ends, np.flatnonzero(kept), side="right")
    ids = text.ids[kept]
    offsets = np.concatenate([np.arange(-args.window, 0), np.arange(1, args.window + 1)])
    order = RowOrder(max(1, len(ids)))  # each place once, neighbours far apart
    for number in range(start, -(-len(ids) // args.batch)):
        chosen = np.arange(number * args.batch, min((number + 1) * args.batch, len(ids)))
        middle = chosen * order.multiplier % len(ids)
        # Near words are more often within reach than far ones.
        draw = np.random.default_rng([args.seed, epoch, number])
        reach = draw.integers(1, args.window + 1, len(middle))[:, None]
        place = middle[:, None] + offsets
        near = (np.abs(offsets) <= reach) & (place >= 0) & (place < len(ids))
        place = place.clip(0, len(ids) - 1)
        near &= line[place] == line[middle][:, None]
        pairs = np.repeat(ids[middle], near.sum(1)), ids[place[near]]
        yield [torch.from_numpy(side.astype(np.int64)) for side in pairs]


def train(text: MonolingualText, args: Namespace, group: Group) -> ShardedTables:
    """Train from the newest checkpoint, or from the start, to the last epoch. Collective."""
    say = print if group.is_first else lambda line: None
    size, rank, workers = Table(len(text.words), args.width), group.rank, group.num_workers
    tables = ShardedTables({"word": size, "context": size}, group, seed=args.seed)
    tables.set_learning_rate(args.rate)
    sampler = UnigramSampler(text.counts, 0.75, min(args.negatives, size.rows))
    output = SampledSoftmax(tables, "context", sampler, seed=args.seed)
    with Checkpoints(args.out, tables, saving=args.saving, report=say) as checkpoints:
        step = saved = checkpoints.load()
        begun, start = checkpoints.values.get("next", (0, 0))
        for epoch in range(begun, args.epochs):
            for number, pairs in enumerate(batches(text, args, epoch, start), start):
                step, total = step + 1, max(1, len(pairs[0]))
                counts = [len(part) for part in pairs[0].tensor_split(workers)]
                words, targets = (side.tensor_split(workers)[rank] for side in pairs)
                drawn = output.draw(step, [targets])
                rows = tables.lookup({"word": words, "context": output.words([targets], drawn)})
                drawn, targets = drawn.to(group.device), targets.to(group.device)
                step_loss = output.start(rows, drawn, 1, 1 / total)
                loss, _ = step_loss.of(rows.vectors("word"), 0, targets, counts)
                (loss * workers / total).backward()  # tables divide by the number of workers
                step_loss.finish()
                rows.backward(proven=True)  # by the loss's own, above
                checkpoints.values = {"next": (epoch, number + 1)}
                if step % 100 == 0:
                    say(f"epoch {epoch + 1}, step {step}: loss {loss / max(1, counts[0]):.3f}")
                if step % args.save_every == 0:
                    checkpoints.save(saved := step)
            start = 0
        if saved < step:
            checkpoints.save(step)
    return tables


@torch.no_grad()
def blocks(text: MonolingualText, tables: ShardedTables, size: int = 10_000) -> Iterator[Block]:
    """The words' vectors on worker 0, on the others none. Collective."""
    for first in range(0, len(text.words), size):
        ids = torch.arange(first, min(first + size, len(text.words)))
        rows = tables.lookup({"word": ids if tables.group.is_first else ids[:0]})
        vectors = rows.vectors("word").cpu().numpy()
        words = text.words[first : first + size]
        yield Block(words, text.counts[first : first + size], vectors)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, train, write ``vectors.txt`` in the format of word2vec."""
    parser = ArgumentParser()
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args(arguments)
    text = read_monolingual(args.text, min_count=args.min_count)
    with joined_group() as group, errors_shared(group):
        found = blocks(text, train(text, args, group))
        if group.is_first:
            size = {"num_words": len(text.words), "width": args.width}
            write_vectors(f"{args.out}/vectors.txt", "word2vec", found, **size)
        else:
            list(found)


if __name__ == "__main__":
    main()
