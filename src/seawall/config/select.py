"""The selection of safety-critical experts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from seawall.config.base import StrictModel, wrong


def _count_or_fraction(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_fraction = isinstance(value, float) and 0.0 < value <= 1.0
    if not (is_count or is_fraction):
        raise wrong("a count of experts (1, 2, ...) or a fraction of all routed experts (above 0, up to 1.0)")
    return value


class SelectConfig(StrictModel):
    """Selection of safety-critical experts (arXiv 2602.04448, section 3.2) and its controls."""

    method: Literal["frequency", "mass", "sensitivity", "random", "frequency_matched", "traffic_matched"] = Field(
        default="frequency",
        description="Score by routing `frequency` (the paper), gate `mass`, or `sensitivity` of the refusal loss to "
        "the expert's gate weights (arXiv 2610.02910); or a control of the same number of experts: `random`, each as "
        "often used as a selected one (`frequency_matched`), or with the same total gate weight (`traffic_matched`).",
    )
    control_of: Literal["frequency", "mass", "sensitivity"] | None = Field(
        default=None,
        description="The score whose selection a control is compared with; null means frequency. Only for a control.",
    )
    scope: Literal["global", "batch_union"] = Field(
        default="global",
        description="Top k over all pairs, or the union of every batch's top k, as in the paper's code.",
    )
    k: Annotated[int | float, BeforeValidator(_count_or_fraction)] = Field(
        default=0.125,
        description="Experts to select: an integer is a count, a decimal number a fraction of all routed experts.",
    )
    batch_pairs: int = Field(default=8, ge=1, le=4096, description="Pairs per batch, for `scope: batch_union`.")
    bootstrap: int = Field(
        default=200,
        ge=0,
        le=100_000,
        description="Resamples of the goals for the stability of the selection; 0 skips the stability.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of controls and resamples; defaults to the recipe's seed."
    )

    @property
    def score(self) -> Literal["frequency", "mass", "sensitivity"]:
        """The score that selects experts, or whose selection the control is compared with."""
        if self.method in ("frequency", "mass", "sensitivity"):
            return self.method
        return self.control_of or "frequency"

    @model_validator(mode="after")
    def _control(self) -> SelectConfig:
        if self.control_of is not None and self.method in ("frequency", "mass", "sensitivity"):
            raise wrong("control_of beside a control: random, frequency_matched or traffic_matched")
        return self
