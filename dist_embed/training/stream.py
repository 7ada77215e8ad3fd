"""Lines that are translated as they come, whoever has them: the workers' end of `cluster.feed`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

from dist_embed.errors import UserError
from dist_embed.parallel.collectives import same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.training.inference import load_translator
from dist_embed.training.tasks import TranslateStream
from dist_embed.training.translation import TooLongError
from dist_embed.training.worker import Context

# That are translated together, where so many have come: lines of like length then share batches.
LINES_OF_WORKER = 1024
# Without a line, after which workers meet all the same: no exchange waits for longer.
IDLE_SECONDS = 10.0


def translate_stream_task(context: Context, asked: TranslateStream) -> int:
    """Translate lines until there are no more, with a run's checkpoint, whose step is returned.

    Raises UserError for a line that is too long where that is refused, once those before it are
    translated. Collective.
    """
    translator, step = load_translator(context, asked.step)
    for first, lines in _as_they_come(context):
        refused: TooLongError | None = None
        try:
            written = translator.written(lines)
        except TooLongError as exc:
            refused, written = exc, translator.written(lines[: exc.place])
        context.reporter.emit({
            "kind": "translated", "lines": [one.shown for one in written],
            "cut": [number for number, one in enumerate(written, first) if one.cut],
        })  # fmt: skip
        if refused:
            raise UserError(f"line {first + refused.place:,}: {refused}")
    return step


def _as_they_come(context: Context) -> Iterator[tuple[int, list[str]]]:
    """Lines, the same on every worker, and the number of the first of them. Collective."""
    group, receive = context.group, context.receive
    cluster = context.config.cluster
    seconds = min(IDLE_SECONDS, cluster.timeout_seconds / 4, cluster.hang_seconds / 4)
    for number in itertools.count():
        most = LINES_OF_WORKER * group.num_workers
        context.reporter.emit({"kind": "wanted", "number": number, "most": most})
        answer = None
        while answer is None:
            text = ""
            with all_or_none(group):
                if group.is_first:
                    assert receive is not None
                    text = json.dumps(receive(number, seconds), ensure_ascii=False)
            answer = json.loads(same_text_from_first(text, group))
        if not answer["lines"]:
            return
        yield answer["first"], answer["lines"]
