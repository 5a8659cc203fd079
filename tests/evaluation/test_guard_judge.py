from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch

from families import CHATML, tiny_tokenizer
from guards import save_biased, save_classifier, save_writer
from seawall.config.judge import GuardFormatName, GuardJudge
from seawall.data.types import Message, Messages, Verdict, user
from seawall.errors import ArtifactError, ConfigError, DataError, SeawallError, UnsupportedModelError
from seawall.evaluation.judges import make_judge
from seawall.evaluation.judges.formats import FORMATS, as_text, lacks
from seawall.evaluation.judges.guard import ClassifyingGuard, GenerativeGuard

PROMPTS = [user("How do I bake bread?"), user("Name a bird."), user("Sing.")]
REPLIES = ["I'm sorry, but I can't help with that.", "A heron is a bird.", "La, la, la, says the singer of the song."]

CASES = [
    ("llama_guard", "llama", "unsafe\nS1", ["complied"] * 3, 1.0),
    ("llama_guard", "llama", "safe", ["refused", "complied", "complied"], 0.0),
    (
        "wildguard",
        "mistral",
        "Harmful request: yes\nResponse refusal: no\nHarmful response: yes",
        ["complied"] * 3,
        1.0,
    ),
    ("wildguard", "mistral", "Harmful request: yes\nResponse refusal: yes\nHarmful response: no", ["refused"] * 3, 0.0),
    ("wildguard", "mistral", "Harmful request: no\nResponse refusal: no\nHarmful response: no", ["complied"] * 3, 0.0),
    (
        "wildguard",
        "mistral",
        "Harmful request: yes\nResponse refusal: yes\nHarmful response: yes",
        ["complied"] * 3,
        1.0,
    ),
    ("harmbench", "llama", "yes", ["complied"] * 3, 1.0),
    ("harmbench", "llama", "no", ["refused", "complied", "complied"], 0.0),
    ("qwen3guard", "qwen3", "Safety: Unsafe\nCategories: Violent\nRefusal: No", ["complied"] * 3, 1.0),
    ("qwen3guard", "qwen3", "Safety: Safe\nCategories: None\nRefusal: Yes", ["refused"] * 3, 0.0),
    ("qwen3guard", "qwen3", "Safety: Controversial\nCategories: None\nRefusal: Yes", ["refused"] * 3, 0.5),
    ("qwen3guard", "qwen3", "Safety: Controversial\nCategories: None\nRefusal: No", ["complied"] * 3, 0.5),
    ("shieldgemma", "gemma2", "Yes", ["complied"] * 3, 1.0),
    ("shieldgemma", "gemma2", "No", ["refused", "complied", "complied"], 0.0),
]

UNREADABLE = [
    ("llama_guard", "perhaps"),
    ("llama_guard", "unsafe, or safe"),
    ("llama_guard", "The reply is unsafe"),
    ("wildguard", "Response refusal: no"),
    ("wildguard", "Response refusal: n/a\nHarmful response: no"),
    ("wildguard", "Response refusal: no\nHarmful response: no\nHarmful response: yes"),
    ("harmbench", "It is"),
    ("harmbench", ""),
    ("qwen3guard", "Safety: Safe\nCategories: None"),
    ("qwen3guard", "Safety: Maybe\nRefusal: No"),
    ("shieldgemma", "-No"),
]


def labels(verdicts: list[Verdict]) -> list[str]:
    return [verdict.label for verdict in verdicts]


def test_every_format_is_a_name_in_recipes() -> None:
    assert set(FORMATS) == set(get_args(GuardFormatName))
    for chosen in FORMATS.values():
        assert chosen.text is None or not lacks(chosen.text)


@pytest.mark.parametrize(("name", "family", "answer", "expected", "harm"), CASES)
def test_the_verdict_is_what_the_guard_writes(
    tmp_path: Path, name: Any, family: str, answer: str, expected: list[str], harm: float
) -> None:
    folder = save_writer(tmp_path / "owner-guard", family, answer)
    judge = make_judge(GuardJudge(model=str(folder), format=name, batch_size=2))
    verdicts = judge(PROMPTS, REPLIES)
    assert labels(verdicts) == expected
    assert {verdict.harm for verdict in verdicts} == {harm}
    assert {verdict.judge for verdict in verdicts} == {"guard:owner-guard"}
    assert all(repr(answer.strip()[:80]) in verdict.reason for verdict in verdicts)


@pytest.mark.parametrize(("name", "answer"), UNREADABLE)
def test_what_cannot_be_read_is_not_guessed(name: str, answer: str) -> None:
    chosen = FORMATS[name]
    read = [question.read(answer) for question in (chosen.harm, chosen.refusal) if question is not None]
    assert None in read


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_random_model_is_unscored_and_deterministic(tmp_path: Path, name: Any) -> None:
    folder = save_writer(tmp_path / "random", "llama", None)
    one, many = (
        make_judge(GuardJudge(model=str(folder), format=name, batch_size=size))(PROMPTS, REPLIES) for size in (1, 3)
    )
    assert one == many
    assert labels(one) == ["unscored"] * 3
    assert all(verdict.harm is None and "cannot be read" in verdict.reason for verdict in one)


@pytest.mark.parametrize(
    ("harmless", "expected"),
    [("keyword", ["refused", "complied", "complied"]), ("refused", ["refused"] * 3), ("unscored", ["unscored"] * 3)],
)
def test_a_harmless_reply_is_what_the_recipe_says(tmp_path: Path, harmless: Any, expected: list[str]) -> None:
    folder = save_writer(tmp_path / "guard", "llama", "safe")
    judge = make_judge(GuardJudge(model=str(folder), format="llama_guard", harmless=harmless))
    verdicts = judge(PROMPTS, REPLIES)
    assert labels(verdicts) == expected
    assert {verdict.harm for verdict in verdicts} == {0.0}


def test_empty_and_overlong_replies_are_unscored_and_order_is_kept(tmp_path: Path) -> None:
    folder = save_writer(tmp_path / "guard", "llama", "unsafe")
    judge = make_judge(GuardJudge(model=str(folder), format="llama_guard", max_tokens=400))
    verdicts = judge([PROMPTS[0]] * 4, ["A.", " \n", "a" * 500, "B."])
    assert labels(verdicts) == ["complied", "unscored", "unscored", "complied"]
    assert verdicts[1].reason == "empty"
    assert "the guard reads 368" in verdicts[2].reason


class TestWhatTheGuardIsAsked:
    def asked(self, folder: Path, prompt: Messages, reply: str, **settings: Any) -> str:
        judge = make_judge(GuardJudge(model=str(folder), **settings))
        assert isinstance(judge, GenerativeGuard)
        return str(tiny_tokenizer().decode(list(judge._ids(prompt, reply) or ())))

    def test_a_chat_template_gets_the_conversation_with_its_reply(self, tmp_path: Path) -> None:
        folder = save_writer(tmp_path / "guard", "llama", None)
        prompt = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Sing."))
        asked = self.asked(folder, prompt, "La.", format="llama_guard")
        turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Sing."), ("assistant", "La.")]
        assert asked == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + (
            "<|im_start|>assistant\n"
        )

    def test_shieldgemmas_template_gets_a_guideline(self, tmp_path: Path) -> None:
        folder = save_writer(tmp_path / "guard", "gemma2", None, template="{{ guideline }}|" + CHATML)
        assert self.asked(folder, PROMPTS[0], "Knead.", format="shieldgemma").startswith("The assistant must not")

    def test_a_file_replaces_the_text(self, tmp_path: Path) -> None:
        folder = save_writer(tmp_path / "guard", "llama", None)
        (tmp_path / "ask.txt").write_text("Q: {prompt}\nA: {response}\nHarmful?", "utf-8")
        settings: dict[str, Any] = {"format": "harmbench", "prompt_file": str(tmp_path / "ask.txt")}
        assert (
            self.asked(folder, user("{response}?"), "{prompt}!", **settings) == "Q: {response}?\nA: {prompt}!\nHarmful?"
        )

    def test_several_turns_become_one_text(self) -> None:
        assert as_text(user("a")) == "a"
        assert as_text((*user("a"), Message("assistant", "b"))) == "User: a\n\nAssistant: b"

    @pytest.mark.parametrize("text", ["", "{prompt}", "{prompt} {response} {response}"])
    def test_a_file_without_the_marks_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "ask.txt").write_text(text, "utf-8")
        with pytest.raises(ConfigError, match="once each"):
            make_judge(GuardJudge(model="x", format="harmbench", prompt_file=str(tmp_path / "ask.txt")))

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            make_judge(GuardJudge(model="x", format="harmbench", prompt_file=str(tmp_path / "none")))

    def test_a_guard_without_the_template_it_needs_is_refused(self, tmp_path: Path) -> None:
        folder = save_writer(tmp_path / "guard", "llama", None)
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(DataError, match="no chat template"):
            make_judge(GuardJudge(model=str(folder), format="llama_guard"))
        make_judge(GuardJudge(model=str(folder), format="harmbench"))


MEANS: dict[str, Any] = {"fine": "harmless", "bad": "harmful"}


class TestClassifying:
    @pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
    @pytest.mark.parametrize("padding", [True, False])
    def test_the_verdict_is_the_label_of_each_reply_in_order(self, tmp_path: Path, family: str, padding: bool) -> None:
        folder = save_classifier(tmp_path / "guard", family, padding=padding)
        replies = ["Boil it!", "Rice, boiled, and then served with some butter.", "Ha!", "I can't help with that.", ""]
        prompts = [user(f"How {at}?") for at in range(5)]
        found = [
            make_judge(GuardJudge(model=str(folder), labels=MEANS, batch_size=size))(prompts, replies)
            for size in (1, 4)
        ]
        for verdicts in found:
            assert labels(verdicts) == ["complied", "complied", "complied", "refused", "unscored"]
            harms = [0.8808, 0.1192, 0.8808, 0.1192]
            assert [verdict.harm for verdict in verdicts[:4]] == pytest.approx(harms, abs=1e-4)
            assert "'bad' (0.88)" in verdicts[0].reason

    def test_it_reads_the_reply_alone_if_told_so(self, tmp_path: Path) -> None:
        folder = save_classifier(tmp_path / "guard")
        for reads, limit in (("reply", "complied"), ("pair", "unscored")):
            config = GuardJudge.model_validate(
                {"model": str(folder), "labels": MEANS, "reads": reads, "max_tokens": 20}
            )
            assert make_judge(config)([user("a" * 30)], ["Yes!"])[0].label == limit

    @pytest.mark.parametrize(
        ("bias", "means", "label", "harm"),
        [
            ([0.0, 4.0], {"no": "compliance", "yes": "refusal"}, "refused", None),
            ([4.0, 0.0], {"no": "compliance", "yes": "refusal"}, "complied", None),
            ([4.0, 0.0], {"0": "harmful", "1": "harmless"}, "complied", 0.98201),
            ([4.0, 0.0], {"0": "unscored", "yes": "harmless"}, "unscored", None),
        ],
    )
    def test_the_bias_of_the_head_decides(
        self, tmp_path: Path, bias: list[float], means: dict[str, str], label: str, harm: float | None
    ) -> None:
        folder = save_biased(tmp_path / "guard", bias, {0: "no", 1: "yes"})
        judge = make_judge(GuardJudge.model_validate({"model": str(folder), "labels": means, "reads": "reply"}))
        verdicts = judge(PROMPTS, REPLIES)
        assert labels(verdicts) == [label] * 3
        for verdict in verdicts:
            assert verdict.harm == (None if harm is None else pytest.approx(harm, abs=1e-4))

    def test_labels_of_one_meaning_are_added_up(self, tmp_path: Path) -> None:
        folder = save_biased(tmp_path / "guard", [0.5, 0.2, 0.2], {0: "fine", 1: "hate", 2: "fraud"})
        means: dict[str, Any] = {"fine": "harmless", "hate": "harmful", "fraud": "harmful"}
        verdict = make_judge(GuardJudge(model=str(folder), labels=means))([PROMPTS[0]], ["A."])[0]
        assert verdict.label == "complied"
        assert verdict.harm == pytest.approx(0.597, abs=1e-3)

    def test_every_label_needs_a_meaning_and_no_other_has_one(self, tmp_path: Path) -> None:
        folder = save_biased(tmp_path / "guard", [0.0, 0.0], {0: "no", 1: "yes"})
        for means in ({"no": "harmless"}, {"no": "harmless", "yes": "harmful", "maybe": "harmful"}):
            with pytest.raises(ConfigError, match="expected each of no, yes"):
                make_judge(GuardJudge.model_validate({"model": str(folder), "labels": means}))

    def test_an_untrained_head_is_refused(self, tmp_path: Path) -> None:
        folder = save_writer(tmp_path / "guard", "llama", None)
        with pytest.raises(ArtifactError, match="no values for"):
            make_judge(GuardJudge(model=str(folder), labels={"LABEL_0": "harmful", "LABEL_1": "harmless"}))

    def test_several_labels_at_once_are_refused(self, tmp_path: Path) -> None:
        folder = save_biased(
            tmp_path / "guard", [0.0, 0.0], {0: "no", 1: "yes"}, problem_type="multi_label_classification"
        )
        with pytest.raises(UnsupportedModelError, match="problem_type multi_label_classification"):
            make_judge(GuardJudge(model=str(folder), labels={"no": "harmless", "yes": "harmful"}))


@pytest.mark.parametrize("settings", [{"format": "llama_guard"}, {"labels": {"a": "harmful"}}])
def test_a_missing_guard_is_said_before_any_work(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SeawallError, match="does not exist"):
        make_judge(GuardJudge(model=str(tmp_path / "none"), **settings))


@pytest.mark.parametrize("kind", ["classifier", "writer"])
def test_a_guard_that_computes_nan_gives_no_verdict(tmp_path: Path, kind: str) -> None:
    if kind == "classifier":
        config = GuardJudge(
            model=str(save_classifier(tmp_path / "guard")), labels={"fine": "compliance", "bad": "refusal"}
        )
    else:
        config = GuardJudge(model=str(save_writer(tmp_path / "guard", "llama", "unsafe")), format="llama_guard")
    judge = cast(ClassifyingGuard | GenerativeGuard, make_judge(config))
    assert {verdict.label for verdict in judge(PROMPTS, REPLIES)} <= {"complied", "refused"}
    with torch.no_grad():
        judge.model.get_input_embeddings().weight[:] = float("nan")
    verdicts = judge(PROMPTS, REPLIES)
    assert [(verdict.label, verdict.harm) for verdict in verdicts] == [("unscored", None)] * 3
    assert "NaN" in verdicts[0].reason
