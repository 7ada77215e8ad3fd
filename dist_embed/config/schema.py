"""The whole configuration of a run, put together from the sections of its components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, model_validator

from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.cluster.settings import ClusterSection
from dist_embed.config.out_of_range import taken_all_the_same
from dist_embed.config.renamed import say_once, with_new_names
from dist_embed.data.settings import DataSection, TokenizerSection
from dist_embed.embedding.settings import EmbeddingSection
from dist_embed.errors import ConfigError
from dist_embed.mistakes import mistakes
from dist_embed.model.settings import ModelSection, SearchSection
from dist_embed.run.settings import RunSection
from dist_embed.section import MAY_CHANGE, Section, paths_as_text
from dist_embed.storage import uri as storage
from dist_embed.training.settings import TrainSection


@dataclass(frozen=True)
class Reading:
    """What is validated, as pydantic's context.

    Attributes:
        origin: what messages call it.
        say: takes a line for each key that has another name now.
        of_run: whether a run was trained with it, maybe by an earlier version.
    """

    origin: str = "configuration"
    say: Callable[[str], None] = say_once
    of_run: bool = False


class Config(Section):
    """One run, whole."""

    run: RunSection
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    embedding: EmbeddingSection = EmbeddingSection()
    model: ModelSection = ModelSection()
    train: TrainSection
    search: Annotated[SearchSection, MAY_CHANGE] = SearchSection()
    checkpoint: Annotated[CheckpointSection, MAY_CHANGE] = CheckpointSection()
    cluster: Annotated[ClusterSection, MAY_CHANGE] = ClusterSection()

    @model_validator(mode="wrap")
    @classmethod
    def _checked(
        cls, values: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        """Reads earlier names of keys, and raises ConfigError in place of pydantic's error, from
        ``Config(…)`` too.
        """
        reading: Reading = info.context or Reading()
        if isinstance(values, Mapping):
            values, renamed = with_new_names(dict(values))
            for line in renamed:
                reading.say(f"{reading.origin}: {line}")
            values = _with_data_uri(values)
        try:
            if reading.of_run:
                return taken_all_the_same(
                    values, cls, validate, lambda line: say_once(f"{reading.origin}: {line}")
                )
            return validate(values)
        except ValidationError as exc:
            raise ConfigError(mistakes(exc, cls, reading.origin)) from None

    if TYPE_CHECKING:
        # Sections may be dictionaries, which pydantic's own signature does not say.
        def __init__(
            self,
            *,
            run: RunSection | dict[str, Any],
            data: DataSection | dict[str, Any] = ...,
            tokenizer: TokenizerSection | dict[str, Any] = ...,
            embedding: EmbeddingSection | dict[str, Any] = ...,
            model: ModelSection | dict[str, Any] = ...,
            train: TrainSection | dict[str, Any],
            search: SearchSection | dict[str, Any] = ...,
            checkpoint: CheckpointSection | dict[str, Any] = ...,
            cluster: ClusterSection | dict[str, Any] = ...,
        ) -> None: ...


def _with_data_uri(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a script gives, with the one default that refers to another key: in a file it is there
    already, for other keys may refer to it in turn.
    """
    run, data = values.get("run"), values.get("data", {})
    uri = run.get("uri") if isinstance(run, Mapping) else getattr(run, "uri", None)
    uri = paths_as_text(uri)
    if not isinstance(uri, str):
        return values
    below = {"uri": storage.join(uri, "data")}
    if data is None or (isinstance(data, Mapping) and "uri" not in data):
        return {**values, "data": {**(data or {}), **below}}
    if isinstance(data, DataSection) and "uri" not in data.model_fields_set:
        return {**values, "data": data.model_copy(update=below)}
    return values
