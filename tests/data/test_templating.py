from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from families import CHATML, tiny_tokenizer
from seawall.data.rendering import check_chat_template
from seawall.data.templating import IGNORED, encode_exchange, encode_prompt, prompt_text
from seawall.data.types import Exchange, Message, Messages, user
from seawall.errors import DataError

LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|header|>{{ message['role'] }}<|/header|>\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
"""As Llama 3: begins with BOS, strips white space, ends turns with an added token that is not the end of sequence."""

NO_SYSTEM = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Gemma."""

CHANNEL = (
    "{% for message in messages %}<|header|>{{ message['role'] }}"
    "{% if message['role'] == 'assistant' %}<|im_start|>final{% endif %}<|/header|>{{ message['content'] }}"
    "{% if loop.last and message['role'] == 'assistant' %}<|endoftext|>{% else %}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant{% endif %}"
)
"""As gpt-oss: special tokens stand before the reply too, and the model has to write them."""

TWO_ENDS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
)
"""As Phi 3: the end of the turn, a line feed, then the end of the text."""

OPEN = (
    "{% for message in messages %}<|header|>{{ message['role'] }}\n{{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant\n{% endif %}"
)
"""As GLM 4: no token ends the assistant's turn."""

THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As Qwen 3: it thinks unless told not to."""

PRELUDE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nLet me see: {% endif %}"
)
"""A generation prompt that stored replies do not begin with."""

SHOUTING = CHATML.replace("{{ message['content'] }}", "{{ message['content'] | upper }}")

# template, how many labelled tokens may precede the reply's own, the end token
TEMPLATES = {
    "chatml": (CHATML, "", "<|im_end|>"),
    "llama": (LLAMA, "", "<|eot|>"),
    "no_system": (NO_SYSTEM, "", "<|im_end|>"),
    "channel": (CHANNEL, "<|im_start|>final<|/header|>", "<|endoftext|>"),
    "two_ends": (TWO_ENDS, "", "<|eot|>"),
    "open": (OPEN, "", "<|im_end|>"),
    "thinking": (THINKING, "", "<|im_end|>"),
}
CONVERSATIONS: dict[str, Messages] = {
    "one turn": user("What is the capital of Canada?"),
    "three turns": (*user("Hello"), Message("assistant", "Hi, how are you?"), Message("user", "Fine. Sing!")),
}


def tokenizer_with(template: str | None, *, merges: list[tuple[str, str]] | None = None) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>", "<|header|>", "<|/header|>", "<|eot|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = ["".join(pair) for pair in merges or []]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet, *joined])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges or []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def labelled(tokenizer: PreTrainedTokenizerFast, labels: list[int]) -> str:
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_are_the_reply_and_its_end_token_and_nothing_else(name: str, conversation: str) -> None:
    template, before, end = TEMPLATES[name]
    tokenizer = tokenizer_with(template)
    prompt = CONVERSATIONS[conversation]
    encoded = encode_exchange(tokenizer, Exchange(prompt, "It is Ottawa.\n\nReally."))
    assert labelled(tokenizer, encoded.labels) == f"{before}It is Ottawa.\n\nReally.{end}"
    assert len(encoded.labels) == len(encoded.input_ids)
    assert encoded.input_ids[: encoded.prompt_length] == encode_prompt(tokenizer, prompt)
    assert encoded.labels[-1] == encoded.input_ids[-1] == tokenizer.convert_tokens_to_ids(end)
    assert all(label in (IGNORED, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))
    assert encoded.response_tokens == len(encoded.input_ids) - encoded.prompt_length


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    question=st.text(min_size=1, max_size=40).filter(str.strip),
    reply=st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and text == text.strip()),
)
def test_any_reply_is_labelled_whole(name: str, question: str, reply: str) -> None:
    template, before, end = TEMPLATES[name]
    tokenizer = tokenizer_with(template)
    encoded = encode_exchange(tokenizer, Exchange(user(question), reply))
    assert labelled(tokenizer, encoded.labels) == f"{before}{reply}{end}"
    assert encoded.input_ids[: encoded.prompt_length] == encode_prompt(tokenizer, user(question))


def test_white_space_that_the_template_strips_is_not_labelled() -> None:
    tokenizer = tokenizer_with(LLAMA)
    encoded = encode_exchange(tokenizer, Exchange(user("Hello"), "\n  Hi there. \n"))
    assert labelled(tokenizer, encoded.labels) == "Hi there.<|eot|>"


def test_a_reply_that_repeats_the_prompt_is_labelled_where_it_is_the_reply() -> None:
    tokenizer = tokenizer_with(CHATML)
    encoded = encode_exchange(tokenizer, Exchange(user("Say yes. yes"), "yes"))
    assert labelled(tokenizer, encoded.labels) == "yes<|im_end|>"
    assert encoded.prompt_length == len(encode_prompt(tokenizer, user("Say yes. yes")))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("reply", ["d", "|", "n", "assistant", "\n\nfinal", ">"])
def test_a_reply_that_is_part_of_the_template_is_labelled_where_it_is_the_reply(name: str, reply: str) -> None:
    template, before, end = TEMPLATES[name]
    tokenizer = tokenizer_with(template)
    encoded = encode_exchange(tokenizer, Exchange(user("Go"), reply.strip()))
    assert labelled(tokenizer, encoded.labels) == f"{before}{reply.strip()}{end}"


def test_special_tokens_come_from_the_template_once() -> None:
    tokenizer = tokenizer_with(LLAMA)
    ids = encode_prompt(tokenizer, user("Hello"))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_the_prompt_opens_the_assistants_turn() -> None:
    assert prompt_text(tiny_tokenizer(), user("Hello")) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_hybrid_models_are_asked_without_thinking() -> None:
    assert prompt_text(tokenizer_with(THINKING), user("Hello")).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_system_message_is_encoded_where_the_template_knows_it() -> None:
    tokenizer = tokenizer_with(LLAMA)
    text = prompt_text(tokenizer, (Message("system", "Be brief"), *user("Hello")))
    assert text.startswith("<|bos|><|header|>system<|/header|>\n\nBe brief<|eot|>")


def test_a_system_message_is_refused_where_the_template_refuses_it() -> None:
    with pytest.raises(DataError, match="got System role not supported for the roles system, user"):
        encode_prompt(tokenizer_with(NO_SYSTEM), (Message("system", "Be brief"), *user("Hello")))


def test_no_chat_template_is_refused() -> None:
    tokenizer = tokenizer_with(None)
    for call in (
        lambda: check_chat_template(tokenizer),
        lambda: encode_prompt(tokenizer, user("Hello")),
        lambda: encode_exchange(tokenizer, Exchange(user("Hello"), "Hi")),
    ):
        with pytest.raises(DataError, match=r"no chat template.*instruct version"):
            call()


def test_a_generation_prompt_that_stored_replies_lack_is_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match="expected 'Let me s' after 24 equal tokens"):
        encode_exchange(tokenizer_with(PRELUDE), Exchange(user("Hello"), "Hi"))


def test_ids_that_merge_across_the_border_are_refused() -> None:
    tokenizer = tokenizer_with(CHATML, merges=[("Ċ", "Ċ")])
    assert encode_exchange(tokenizer, Exchange(user("Hello"), "Hi")).response_tokens == 3
    with pytest.raises(DataError, match="strip the reply"):
        encode_exchange(tokenizer, Exchange(user("Hello"), "\nHi"))


def test_a_template_that_rewrites_the_reply_is_refused() -> None:
    with pytest.raises(DataError, match="the chat template rewrites the reply"):
        encode_exchange(tokenizer_with(SHOUTING), Exchange(user("HELLO"), "hi there"))


def test_an_open_turn_without_an_end_of_sequence_token_is_refused() -> None:
    tokenizer = tokenizer_with(OPEN)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        encode_exchange(tokenizer, Exchange(user("Hello"), "Hi"))


def test_a_reply_after_an_opened_thought_is_refused() -> None:
    opens = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with pytest.raises(DataError, match=r"opens a thought before the reply.*got a prompt that ends in '<think>'"):
        encode_exchange(tokenizer_with(opens), Exchange(user("Hello"), "Hi"))


def test_an_empty_reply_is_refused() -> None:
    with pytest.raises(DataError, match="reply is empty; got the prompt 'Hello'"):
        encode_exchange(tiny_tokenizer(), Exchange(user("Hello"), " \n"))
