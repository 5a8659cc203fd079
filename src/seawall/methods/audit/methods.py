"""Every audit by its name in recipes: its measurement and its section of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from seawall.artifacts.audit import AuditResult
from seawall.config.audit import AuditName
from seawall.methods.audit.context import AuditSubject
from seawall.methods.audit.localisation import localisation_audit, localisation_view
from seawall.methods.audit.patching import patching_audit, patching_view
from seawall.methods.audit.shortcut import shortcut_audit, shortcut_view
from seawall.methods.audit.silencing import silencing_audit, silencing_view
from seawall.methods.audit.switches import switches_audit, switches_view
from seawall.methods.audit.tamper import tamper_audit, tamper_view
from seawall.report.audits import AuditView


@dataclass(frozen=True)
class Audit:
    """One audit.

    Attributes:
        measure: makes the result, in a stage's scratch folder.
        view: the result as a section of the page.
    """

    measure: Callable[[AuditSubject, Path], AuditResult]
    view: Callable[[AuditResult], AuditView]


AUDITS: dict[AuditName, Audit] = {
    "routing_shortcut": Audit(shortcut_audit, shortcut_view),
    "patching": Audit(patching_audit, patching_view),
    "silencing": Audit(silencing_audit, silencing_view),
    "localisation": Audit(localisation_audit, localisation_view),
    "steering": Audit(switches_audit, switches_view),
    "tamper": Audit(tamper_audit, tamper_view),
}


def audit_view(result: AuditResult) -> AuditView:
    """An audit's section of the page."""
    return AUDITS[cast(AuditName, result.audit)].view(result)
