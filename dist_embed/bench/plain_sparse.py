"""The other baseline: whole tables on every worker, as `nn.Embedding` with sparse gradients, and
the same sampled softmax on top; DDP brings the gradients together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dist_embed.config.schema import Config
from dist_embed.data.batch import Batch
from dist_embed.data.loader import StepBatches
from dist_embed.embedding.memory import logits_block_bytes
from dist_embed.model.sampled_output import sampled_cross_entropy
from dist_embed.model.sampler import LogUniformSampler, Negatives
from dist_embed.model.transformer import Transformer
from dist_embed.parallel.device import memory_bytes
from dist_embed.parallel.group import Group
from dist_embed.training.samples import samples_of_a_step

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class StepWithNegatives(StepBatches):
    """A step's batches with its negatives."""

    negatives: Negatives

    def to(self, device: torch.device) -> Self:
        """The same on ``device``."""
        return replace(super().to(device), negatives=self.negatives.to(device))


class SparseSampled:
    """Trains steps: AdamW on the dense part, Adagrad on the tables.

    Args:
        config: sizes and samples.
        num_words: V of each of the three tables.
        group: this worker and its peers.

    The constructor and `run` are collective.
    """

    def __init__(self, config: Config, num_words: int, group: Group) -> None:
        torch.manual_seed(config.run.seed)
        self._group = group
        self._seed = config.run.seed
        self._sampler = LogUniformSampler(num_words, samples_of_a_step(config, num_words))
        with torch.device(group.device):  # on a GPU the tables are drawn there
            model: nn.Module = _Model(config, num_words, _block_bytes(config, num_words, group))
        tables = [p for name, p in model.named_parameters() if name.startswith("tables.")]
        dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
        if group.num_workers > 1:
            model = DistributedDataParallel(model, process_group=group.process_group)
        self._model = model
        self._optimizers = [
            torch.optim.AdamW(dense, lr=1e-3, fused=True),
            torch.optim.Adagrad(tables, lr=0.05, eps=1e-8),
        ]

    def prepare(self, step: int, work: StepBatches) -> StepWithNegatives:
        """What a loader's thread would do of a step. Not collective."""
        negatives = self._sampler.draw(self._seed, step)
        return StepWithNegatives(work.batches, work.token_counts, work.after, negatives)

    def run(self, step: int, work: StepBatches, following: StepBatches | None) -> None:
        """One training step, prepared or not."""
        if not isinstance(work, StepWithNegatives):
            work = self.prepare(step, work).to(self._group.device)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss: Tensor = self._model(work.batches[0], work.negatives)
        (loss * self._group.num_workers / work.global_tokens).backward()
        for optimizer in self._optimizers:
            optimizer.step()


class _Model(nn.Module):
    def __init__(self, config: Config, num_words: int, block_bytes: int) -> None:
        super().__init__()
        model, width = config.model, config.embedding.width
        self._num_words = num_words
        self._block_bytes = block_bytes
        self.transformer = Transformer(
            embedding_width=width, width=model.width, feed_forward=model.feed_forward,
            heads=model.heads, encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers, dropout=model.dropout, attention_dropout=0.0,
        )  # fmt: skip
        tables = {
            role: nn.Embedding(num_words, width, sparse=True)
            for role in ("source", "target", "output")
        }
        for table in tables.values():
            nn.init.normal_(table.weight, std=width**-0.5)
        self.tables = nn.ModuleDict(tables)

    def forward(self, batch: Batch, negatives: Negatives) -> Tensor:
        """Sum of the loss over the batch's target tokens."""
        hidden = self.transformer(
            self.tables["source"](batch.source), batch.source_lengths,
            self.tables["target"](batch.target_input), batch.token_positions,
            batch.rectangles,
        )  # fmt: skip
        words = self.tables["output"](torch.cat([batch.target_output, negatives.ids]))
        count = batch.target_output.numel()
        loss, _ = sampled_cross_entropy(
            hidden, words[:count], words[count:], batch.target_output, negatives,
            num_words=self._num_words, block_bytes=self._block_bytes,
        )  # fmt: skip
        return loss


def _block_bytes(config: Config, num_words: int, group: Group) -> int:
    """Bytes of a block of logits, as our own layer has them."""
    return logits_block_bytes(
        config.model.logits_block_mib, num_words, group.num_workers, exact=False,
        device_bytes=memory_bytes(group.device) if group.device.type == "cuda" else None,
    )  # fmt: skip
