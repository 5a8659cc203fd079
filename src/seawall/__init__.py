"""seawall: audit, repair and certify the safety of open-weight language models, mixture-of-experts first.

Everything below is loaded at first use: `import seawall` itself imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seawall.version import __version__

if TYPE_CHECKING:
    from seawall.api.checks import diff, doctor, gate, load, plan
    from seawall.api.genes import extract_gene, graft
    from seawall.api.runs import audit, evaluate, landscape, run, steer, tune
    from seawall.methods.tune.basin import SafetyBasin
    from seawall.methods.tune.drift import RoutingDrift
    from seawall.models.moe.capture import capture
    from seawall.models.moe.experts import trainable_experts
    from seawall.models.moe.find import find_moe
    from seawall.models.moe.replay import replay

_PARTS: dict[str, tuple[str, ...]] = {
    "seawall.api.runs": ("run", "evaluate", "audit", "steer", "landscape", "tune"),
    "seawall.api.genes": ("extract_gene", "graft"),
    "seawall.api.checks": ("load", "gate", "diff", "doctor", "plan"),
    "seawall.methods.tune.basin": ("SafetyBasin",),
    "seawall.methods.tune.drift": ("RoutingDrift",),
    "seawall.models.moe.find": ("find_moe",),
    "seawall.models.moe.capture": ("capture",),
    "seawall.models.moe.replay": ("replay",),
    "seawall.models.moe.experts": ("trainable_experts",),
}
_HOMES = {name: module for module, names in _PARTS.items() for name in names}
__all__ = [
    "RoutingDrift",
    "SafetyBasin",
    "__version__",
    "audit",
    "capture",
    "diff",
    "doctor",
    "evaluate",
    "extract_gene",
    "find_moe",
    "gate",
    "graft",
    "landscape",
    "load",
    "plan",
    "replay",
    "run",
    "steer",
    "trainable_experts",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
