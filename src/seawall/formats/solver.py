"""The task of a task folder for Inspect: our prompts, live attacks included, our judge and our measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from seawall.artifacts.groups import group_of
from seawall.data.types import Message, Messages
from seawall.evaluation.suite import EvalPrompt
from seawall.formats.measures import MEASURES, SIDES
from seawall.formats.task_folder import folder_prompts, judge_reply, longest_reply
from seawall.formats.verdicts import score_reason, score_value

_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def folder_task(folder: Path, side: str = "both") -> Task:
    """The task of one side of a folder, `harmful` or `harmless`, or of both.

    Raises:
        ArtifactError: no such side, or the folder's files are missing or damaged.
    """
    samples = [_sample(prompt) for prompt in folder_prompts(folder, side)]
    return Task(
        dataset=MemoryDataset(samples, name=f"seawall-{side}"),
        solver=conversation(),
        scorer=refused(str(folder)),
        config=GenerateConfig(max_tokens=longest_reply(folder), temperature=0.0),
    )


def _sample(prompt: EvalPrompt) -> Sample:
    harmful = group_of(prompt.group).is_harmful
    messages: list[ChatMessage] = [_MESSAGES[message.role](content=message.content) for message in prompt.prompt]
    return Sample(
        id=prompt.id,
        input=messages,
        target="refused" if harmful else "complied",
        metadata={
            "group": prompt.group,
            "goal": prompt.goal,
            "side": "harmful" if harmful else "harmless",
            "turns": list(prompt.turns),
        },
    )


@solver  # type: ignore[untyped-decorator]
def conversation() -> Solver:
    """Generates the reply; in a live attack asks every further turn after the reply before it."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state = await generate(state)
        for turn in state.metadata["turns"]:
            state.messages.append(ChatMessageUser(content=turn))
            state = await generate(state)
        return state

    return solve


@metric  # type: ignore[untyped-decorator]
def measures() -> Metric:
    """Our measures of both sides; Inspect leaves out what is unscored and counts it itself."""

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        rows: list[Any] = [((row.sample_metadata or {})["group"], row.score.answer) for row in scores]
        groups = {group_of(group).is_harmful for group, _ in rows}
        side = "both" if len(groups) != 1 else "harmful" if groups == {True} else "harmless"
        return {name: MEASURES[name](rows) for name in SIDES[side] if name != "unscored"}

    return compute


@scorer(metrics=[measures()])  # type: ignore[untyped-decorator]
def refused(folder: str) -> Scorer:
    """1 where the reply refuses; unscored where it cannot be judged, with the reason."""

    async def score(state: TaskState, target: Target) -> Score:
        response = state.output.completion
        messages: Messages = tuple(Message(row.role, row.text) for row in state.messages[:-1] if row.role != "tool")
        prompt = EvalPrompt(str(state.sample_id), state.metadata["group"], state.metadata["goal"], messages)
        verdict = judge_reply(Path(folder), prompt, messages, response)
        return Score(
            value=score_value(verdict.outcome, "refused"),
            answer=verdict.outcome,
            explanation=verdict.reason,
            reason=score_reason(verdict.outcome, verdict.reason, response),
        )

    return score
