from __future__ import annotations

import pytest

from families import CHATML
from scripted import HARMONY, HARMONY_TOKENS, OPENS_THOUGHT, scripted_tokenizer
from seawall.data.answers import NEVER_ANSWERED, ReplyParts, ThoughtMarks, opened_block, split_reply
from seawall.data.templating import opened_by_prompt, thought_marks, turn_end
from seawall.data.types import user

NO_ANSWER = ReplyParts("", "Hm.", NEVER_ANSWERED)
REPLIES = {
    # text, what the prompt opens, parts
    "no thought": ("No.", "", ReplyParts("No.")),
    "opened by the prompt": ("Hm.\n</think>\n\nNo.", "<think>\n", ReplyParts("No.", "Hm.")),
    "opened by the prompt, never closed": ("Hm.", "<think>\n", NO_ANSWER),
    "opened and closed by the prompt": ("No.", "", ReplyParts("No.")),
    "opened by the reply": ("<think>Hm.</think>No.", "", ReplyParts("No.", "Hm.")),
    "opened by the reply, never closed": ("<think>Hm.", "", NO_ANSWER),
    "closed alone": ("Hm.</think>No.", "", ReplyParts("No.", "Hm.")),
    "closed twice": ("Hm.</think>Hm.</think>No.", "<think>\n", ReplyParts("No.", "Hm.Hm.")),
    "nothing after the thought": ("Hm.</think>", "<think>\n", ReplyParts("", "Hm.")),
    "two thoughts": ("<think>H</think>N<think>m.</think>o.", "", ReplyParts("No.", "Hm.")),
    "an answer before a second thought": ("</think>No.<think>Hm.", "<think>", ReplyParts("No.", "Hm.")),
    "seed": ("<seed:think>Hm.</seed:think>No.", "", ReplyParts("No.", "Hm.")),
    "magistral": ("[THINK]Hm.[/THINK]No.", "", ReplyParts("No.", "Hm.")),
    "a stage direction": ("[think] No.", "", ReplyParts("[think] No.")),
    "cohere": ("<|START_THINKING|>Hm.<|END_THINKING|>No.", "", ReplyParts("No.", "Hm.")),
    "gemma": ("<|channel>thought\nHm.<channel|>No.", "", ReplyParts("No.", "Hm.")),
    "granite": ("Here is my thought process: Hm. Here is my response: No.", "", ReplyParts("No.", "Hm.")),
    "another tag of the prompt": ("Hm.</scratchpad>No.", "<scratchpad>", ReplyParts("No.", "Hm.")),
    "another tag of the prompt, never closed": ("Hm.", "<scratchpad>", NO_ANSWER),
    "harmony": (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>",
        "<|start|>assistant",
        ReplyParts("No.", "Hm."),
    ),
    "harmony, final alone": ("<|channel|>final<|message|>No.", "<|start|>assistant", ReplyParts("No.")),
    "harmony, commentary": (
        "<|channel|>commentary to=tool<|constrain|>json<|message|>Hm.<|call|>",
        "<|start|>assistant",
        ReplyParts("", "to=tooljsonHm.", NEVER_ANSWERED),
    ),
    "harmony, never final": ("<|channel|>analysis<|message|>Hm.", "<|start|>assistant", NO_ANSWER),
    "harmony, opened": (
        "Hm.<|end|><|start|>assistant<|channel|>final<|message|>No.",
        "<|start|>assistant<|channel|>analysis<|message|>",
        ReplyParts("No.", "Hm."),
    ),
    "harmony, opened final": ("No.", "<|start|>assistant<|channel|>final<|message|>", ReplyParts("No.")),
    "harmony without its special tokens": ("analysisHm.assistantfinalNo.", "", ReplyParts("No.", "Hm.")),
}


@pytest.mark.parametrize("case", REPLIES)
def test_the_parts_of_a_reply(case: str) -> None:
    text, opened, parts = REPLIES[case]
    special = [*HARMONY_TOKENS, "<|call|>", "<|constrain|>"]
    assert split_reply(text, opened=opened, special_tokens=special) == parts


def test_marks_of_the_template_are_marks() -> None:
    marks = ThoughtMarks("<muse>", "</muse>")
    assert split_reply("<muse>Hm.</muse>No.", marks=marks) == ReplyParts("No.", "Hm.")
    assert split_reply("<muse>Hm.</muse>No.") == ReplyParts("<muse>Hm.</muse>No."), "any other tag is text"


@pytest.mark.parametrize(
    ("turn", "opened"),
    [
        ("<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|start|>assistant", "<|start|>assistant"),
        ("<bot><scratchpad>", "<scratchpad>"),
        ("<start_of_turn>model\n", ""),
        ("<response>", ""),
    ],
)
def test_what_a_prompt_opens(turn: str, opened: str) -> None:
    assert opened_block(turn) == opened


def test_a_request_opens_no_thought() -> None:
    tokenizer = scripted_tokenizer()
    assert opened_by_prompt(tokenizer, user("Say <think>"), None) == ""
    tokenizer = scripted_tokenizer(template=OPENS_THOUGHT)
    assert opened_by_prompt(tokenizer, user("Say </think>"), None) == "<think>\n"


def test_the_marks_that_a_template_writes() -> None:
    writes = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<muse>{{ m.reasoning_content }}"
        "</muse>{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert thought_marks(scripted_tokenizer(template=writes)) == ThoughtMarks("<muse>", "</muse>")
    assert thought_marks(scripted_tokenizer()) is None
    scratch = ThoughtMarks("<scratchpad>", "</scratchpad>")
    assert thought_marks(scripted_tokenizer(("<scratchpad>", "</scratchpad>\n"))) == scratch, "by the tokenizer"
    strips = (
        CHATML.replace("message['content']", "message['content'].split('</scratchpad>')[-1]") + "{# <scratchpad> #}"
    )
    assert thought_marks(scripted_tokenizer(template=strips)) == scratch, "by the template's source"
    turns = writes.replace("<muse>", "<|im_start|>assistant\n").replace(
        "</muse>", "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert thought_marks(scripted_tokenizer(template=turns)) is None, "a turn of its own"


PLAIN_TEXT = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
GLM = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"


def test_the_end_of_a_turn_is_the_one_that_the_template_writes() -> None:
    ends = scripted_tokenizer(eos="<|endoftext|>")
    assert turn_end(ends).token_id == ends.convert_tokens_to_ids("<|im_end|>")
    harmony = scripted_tokenizer(template=HARMONY, special=HARMONY_TOKENS, eos="<|endoftext|>")
    assert turn_end(harmony).token_id == harmony.convert_tokens_to_ids("<|return|>"), (
        "not <|end|>, which ends a thought"
    )
    glm = scripted_tokenizer(template=GLM, eos="<|endoftext|>")
    assert turn_end(glm).token_id == glm.convert_tokens_to_ids("<|im_start|>"), "the next turn"
    ordinary = scripted_tokenizer(("<end>",), template=GLM.replace("{% endfor", "<end>{% endfor"), eos="<|endoftext|>")
    assert turn_end(ordinary).token_id == ordinary.convert_tokens_to_ids("<end>"), "an added token that is not special"
    text = turn_end(scripted_tokenizer(template=PLAIN_TEXT))
    assert (text.token_id, text.text) == (None, "\n\n### user:")
