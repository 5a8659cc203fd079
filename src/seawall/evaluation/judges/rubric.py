"""A language model behind an OpenAI-compatible endpoint as the judge."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from seawall.config.judge import RubricJudge as RubricConfig
from seawall.data.types import NO_ANSWER, Messages, Verdict
from seawall.evaluation.judges.answers import AnswerLog
from seawall.evaluation.judges.endpoint import Answer, Endpoint
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
        self._concurrency = config.concurrency
        self._endpoint = Endpoint(config)
        self._log = AnswerLog(folder)

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per reply, in order.

        Raises:
            ConfigError: the endpoint says that the key, the address or the model is wrong.
        """
        bodies = [
            self._endpoint.body(question(prompt, reply)) if reply.strip() else None
            for prompt, reply in zip(prompts, responses, strict=True)
        ]
        keys = ["" if body is None else canonical_hash(body) for body in bodies]
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if body is not None}
        found = {key: kept for key in missing if (kept := self._log.get(key)) is not None}
        found |= self._ask({key: body for key, body in missing.items() if key not in found})
        return [unscored("empty", self.name) if not key else self._verdict(found[key]) for key in keys]

    def _ask(self, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Answer]:
        if not bodies:
            return {}
        stop = threading.Event()
        with self._endpoint.connect() as client:

            def one(key: str) -> Answer:
                if stop.is_set():
                    return Answer(None, "stopped", final=False)
                answer = self._endpoint.ask(client, bodies[key], stop)
                if answer.final:
                    self._log.add(key, answer)
                return answer

            executor = ThreadPoolExecutor(self._concurrency)
            try:
                return dict(zip(bodies, executor.map(one, bodies), strict=True))
            finally:  # also when an answer shows that a setting is wrong, or the user interrupts
                stop.set()
                executor.shutdown(cancel_futures=True)

    def _verdict(self, answer: Answer) -> Verdict:
        if not answer.final:
            return unscored(f"{NO_ANSWER}{answer.problem} in the last attempt", self.name)
        if answer.problem is not None:
            return unscored(answer.problem, self.name)
        return read_grades(answer.text, self.name)
