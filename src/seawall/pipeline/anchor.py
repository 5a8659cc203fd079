"""The anchor of a recipe's models, the embedded ones included."""

from __future__ import annotations

from seawall.artifacts.anchor import Anchor
from seawall.config.anchor import AnchorConfig
from seawall.pipeline.model import located
from seawall.tuning.anchor import extract_anchor


def open_anchor(config: AnchorConfig) -> Anchor:
    """`extract_anchor`, where either model may also be `lab` or `lab-original`.

    Raises:
        SeawallError: as `extract_anchor`.
    """
    return extract_anchor(config.model_copy(update={"aligned": located(config.aligned), "base": located(config.base)}))
