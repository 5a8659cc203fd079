"""A language model behind an OpenAI-compatible endpoint as the judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seawall.config.judge import RubricJudge as RubricConfig
from seawall.data.types import NO_ANSWER, Messages, Verdict
from seawall.evaluation.answers import AnswerLog, ask_all
from seawall.evaluation.endpoint import Answer, Endpoint
from seawall.evaluation.judges.finding import unscored
from seawall.evaluation.judges.rubric_text import question, read_grades
from seawall.runs.files import canonical_hash


class RubricJudge:
    """Grades by a rubric: refused or complied, and how harmful.

    What cannot be had is unscored, never a refusal: an answer that is not exactly the object that was asked for, and a
    request that failed in every attempt. Only the latter is asked again when the same reply is judged again.
    """

    def __init__(self, config: RubricConfig, folder: Path | None = None) -> None:
        """Open it; nothing is sent yet.

        Args:
            config: where and how to ask.
            folder: where raw answers are kept; none keeps them in memory.

        Raises:
            ConfigError: the variable that should hold the key is not set, or the address is none.
            ArtifactError: the kept answers are damaged.
        """
        self.name = f"rubric:{config.model}"
        self._config = config
        self._endpoint = Endpoint(config, "eval.judge")
        self._log = AnswerLog(folder)

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per reply, in order.

        Raises:
            ConfigError: the endpoint says that the key, the address or the model is wrong.
        """
        bodies = [
            self._body(question(prompt, reply)) if reply.strip() else None
            for prompt, reply in zip(prompts, responses, strict=True)
        ]
        keys = ["" if body is None else canonical_hash(body) for body in bodies]
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if body is not None}
        found = ask_all(self._endpoint, missing, self._log)
        return [unscored("empty", self.name) if not key else self._verdict(found[key]) for key in keys]

    def _body(self, asked: str) -> dict[str, Any]:
        body = self._endpoint.body([{"role": "user", "content": asked}], self._config.max_tokens)
        return body | ({"response_format": {"type": "json_object"}} if self._config.json_mode else {})

    def _verdict(self, answer: Answer) -> Verdict:
        if not answer.final:
            return unscored(f"{NO_ANSWER}{answer.problem} in the last attempt", self.name)
        if answer.problem is not None:
            return unscored(answer.problem, self.name)
        return read_grades(answer.text, self.name)
