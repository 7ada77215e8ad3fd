"""Names of settings of learning rates."""

from __future__ import annotations

from typing import Literal

Shape = Literal["constant", "inverse_sqrt", "cosine", "linear"]
