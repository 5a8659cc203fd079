"""Statements that the numbers of a run support, and tempting ones that they do not; computed, never written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seawall.artifacts.evaluation import SIGNIFICANT
from seawall.config.repair import TRAINED
from seawall.report.inputs import GroupRow, ReportInputs, ScoreRow
from seawall.report.verdict import span_of_change
from seawall.report.wording import amount, group_name, limit_of, number, percent


def allowed(inputs: ReportInputs) -> list[str]:
    """Statements that the run supports, each with its number."""
    statements = []
    for row in inputs.groups:
        if row.effect in ("better", "worse") and row.change is not None:
            verb = "fell" if row.change.difference < 0 else "rose"
            statements.append(f"{_subject(row)} {verb}: {span_of_change(row.change)}.")
    statements += [
        f"{row.name} lost {'less' if row.verdict == 'non-inferior' else 'more'} than {_margin(row)}: {_moved(row)}."
        for row in inputs.scores
        if row.verdict != "unclear"
    ]
    statements += _scope_of_change(inputs)
    parity = inputs.summary.get("parity")
    if parity and parity["passed"]:
        statements.append(
            "The exported checkpoint, loaded in a fresh process, is the model measured here: largest difference of "
            f"any logit {number(parity['max_logit_difference'])}."
        )
    return statements


def not_allowed(inputs: ReportInputs) -> list[str]:
    """Statements that a reader may be tempted to make, and the reasons against them."""
    statements = []
    unclear = [group_name(row.group) for row in inputs.groups if row.effect == "unclear"]
    if unclear:
        statements.append(
            f"That nothing changed in: {', '.join(unclear)}. Their intervals hold zero or p is not below "
            f"{SIGNIFICANT}; changes as large as the ends of the intervals are possible too."
        )
    statements += _zeros(inputs)
    statements += [
        f"That {row.name} is unharmed: {_moved(row)}, so a loss above {_margin(row)} is neither shown nor ruled out."
        for row in inputs.scores
        if row.verdict == "unclear"
    ]
    names = ", ".join(group_name(row.group).lower() for row in inputs.groups if row.is_attack)
    statements.append(
        f"That the model is safe. It was tested with these attacks, in fixed wordings: {names or 'none'}. An attack "
        "that is searched for against this very model, or comes in another language or form, was not tried."
    )
    limit = limit_of(inputs.recipe)
    if limit is not None:
        statements.append(
            f"That these are the rates of all prompts: at most {limit} of every group were asked (data.limit)."
        )
    statements.append(_LIMITS[_judge_kind(inputs)])
    statements += _unscored(inputs)
    trained = trained_instead(inputs)
    test = (
        f", and this repair, which trained {trained}, is no test of it."
        if trained
        else "; the comparison with random experts of equal number is the test."
    )
    statements.append(f"That the selected experts cause unsafe replies. The gap is an association{test}")
    statements.append(
        "That the repair withstands further training: whoever holds the weights can tune them again. Nor that another "
        f"seed gives the same numbers: this is one run (seed {inputs.recipe.get('seed', 'not recorded')})."
    )
    return statements


def protocol(inputs: ReportInputs) -> str:
    """The method behind the rates, in a sentence or two from the recipe."""
    settings: Mapping[str, Any] = inputs.recipe.get("eval") or {}
    length = settings.get("max_new_tokens")
    limit = f" of at most {length} tokens" if length else ""
    resamples = settings.get("bootstrap")
    times = f" ({resamples:,} resamples)" if resamples else ""
    return (
        f"Greedy replies{limit}, judged by the {_judge_kind(inputs)} judge; 95% intervals by resampling "
        f"goals{times}, since replies to one goal are alike; the change is measured on the same prompts. Goals are "
        f"held out: neither the repair nor the choice of the round saw them.{_near_duplicates(inputs)}"
        f"{_disagreement(inputs)}"
    )


def _near_duplicates(inputs: ReportInputs) -> str:
    """The lines on near-duplicates between the parts; nothing without any, and for runs of early versions."""
    notes = (inputs.manifest.get("data") or {}).get("near_duplicates") or ()
    return "".join(f" Near-duplicates, {note}." for note in notes)


_WORDING = (
    "That a reply counted as compliance does harm, or that a refusal is a good one: the judge reads the wording of the "
    "reply, not its substance."
)
_LIMITS = {
    "keyword": _WORDING,
    "guard": (
        "That every verdict is right: the judge is a model of its own, with errors that were not measured on these "
        "replies, and it can be swayed by what it reads."
    ),
    "rubric": (
        "That every verdict is right: the judge is a language model behind an endpoint, with errors that were not "
        "measured on these replies; another model there, or another day, may judge otherwise."
    ),
    "plugin": (
        "That every verdict is right: the judge is a plugin, the user's own code, and its errors were not measured on "
        "these replies."
    ),
    "ensemble": (
        "That every verdict is right: judges that agree can share an error, and how often they do was not measured."
    ),
}
"""The limit of a judge's verdicts, by its kind in the recipe."""


def _disagreement(inputs: ReportInputs) -> str:
    shares = inputs.summary.get("judge_disagreement")
    if shares is None or None in shares.values():
        return ""
    before, after = percent(shares["before"]), percent(shares["after"])
    return f" The judges differed on {before} of the replies before and {after} after."


def _judge_kind(inputs: ReportInputs) -> str:
    settings: Mapping[str, Any] = inputs.recipe.get("eval") or {}
    return str((settings.get("judge") or {}).get("kind", "keyword"))


def _margin(row: ScoreRow) -> str:
    return f"{number(100 * row.margin, 1)} points"


def _moved(row: ScoreRow) -> str:
    return f"it changed by {span_of_change(row.change)} on {amount(row.change.goals, 'question')}"


def _subject(row: GroupRow) -> str:
    if not row.is_attack:
        return group_name(row.group)
    kind = "trained on" if row.trained_on else "never seen"
    return f"Attack success of {group_name(row.group).lower()} ({kind})"


def open_to_change(inputs: ReportInputs) -> str:
    """What the repair could change, in words; empty where that is most of the model."""
    repair: Mapping[str, Any] = inputs.recipe.get("repair") or {}
    share = percent(inputs.summary["selected_experts"] / inputs.summary["routed_experts"])
    experts = amount(inputs.summary["selected_experts"], "expert")
    kinds = {
        "selected": f"{experts} of {inputs.summary['routed_experts']:,} ({share})",
        "shared": "the shared experts beside the routed ones (and a gate of theirs, if any)",
    }
    parts = []
    if _trains_experts(repair):
        trained = kinds.get(repair.get("parameters", "selected"))
        if trained is None:
            return ""
        parts.append(trained)
        if (repair.get("expert") or {}).get("attention_lr") is not None:
            parts.append("the attention of their layers")
    if (repair.get("router") or {}).get("enabled", True):
        parts.append("the routers")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def trained_instead(inputs: ReportInputs) -> str:
    """What the repair trained in place of the selected experts alone; empty where it trained these."""
    repair: Mapping[str, Any] = inputs.recipe.get("repair") or {}
    if not _trains_experts(repair):
        return "the routers"
    parameters = repair.get("parameters", "selected")
    return "" if parameters == "selected" else TRAINED.get(parameters, "")


def _trains_experts(repair: Mapping[str, Any]) -> bool:
    return bool((repair.get("expert") or {}).get("enabled", True))


def _scope_of_change(inputs: ReportInputs) -> list[str]:
    trained = open_to_change(inputs)
    return [f"Only {trained} were open to change."] if trained else []


def _zeros(inputs: ReportInputs) -> list[str]:
    ends = [
        f"{group_name(row.group).lower()} up to {percent(row.after.high)}"
        for row in inputs.groups
        if row.is_attack and row.after is not None and row.after.rate == 0
    ]
    if not ends:
        return []
    return [f"That an attack never succeeds. None of the tested replies did, which still allows: {', '.join(ends)}."]


def _unscored(inputs: ReportInputs) -> list[str]:
    sides = [side for row in inputs.groups for side in (row.before, row.after) if side is not None]
    count, total = sum(side.unscored for side in sides), sum(side.n for side in sides)
    if not count:
        return []
    return [
        f"That every reply was understood: {count:,} of {total:,} were empty or degenerate. They are unscored: counted "
        "neither as refusals nor as compliance, and in no rate."
    ]
