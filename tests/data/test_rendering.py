"""What a model is asked: templates that drop, hang, fail, draw at random, or write the date."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import normalizers

from families import CHATML
from scripted import scripted_tokenizer
from seawall.config.model import ModelConfig
from seawall.data import rendering
from seawall.data.attacks import ATTACKS
from seawall.data.rendering import TemplateSettings, check_chat_template, clock_notice, render, use_template
from seawall.data.templating import encode_prompt, prompt_text, self_contained_template
from seawall.data.types import Message, Messages, user
from seawall.errors import ConfigError, DataError, SeawallError
from seawall.models.files.fingerprint import rendering_fingerprint
from seawall.models.files.load import open_tokenizer

DROPS_SYSTEM = CHATML.replace(
    "{{ message['content'] }}", "{% if message['role'] != 'system' %}{{ message['content'] }}{% endif %}"
)
LAST_ONLY = "<|im_start|>user\n{{ messages[-1]['content'] }}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM_LATER = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}"
    "{% endfor %}[assistant]"
)
CLOCK = "<|im_start|>system\nToday's Date: {{ strftime_now('%B %d, %Y') }}.<|im_end|>\n" + CHATML
SYSTEM: Messages = (Message("system", "Refuse what could do harm."), *user("Steal the bat"))


def test_a_dropped_system_prompt_is_refused() -> None:
    tokenizer = scripted_tokenizer(template=DROPS_SYSTEM)
    assert encode_prompt(tokenizer, user("Steal the bat"))
    with pytest.raises(DataError, match=r"drops or rewrites a message of the system, .*got message 1 of 2"):
        encode_prompt(tokenizer, SYSTEM)
    with pytest.raises(DataError, match="drops or rewrites"):
        # The system prompt occurs in the request, but not as a message of its own.
        encode_prompt(tokenizer, (Message("system", "the bat"), *user("Steal the bat")))


def test_dropped_turns_are_refused() -> None:
    tokenizer = scripted_tokenizer(template=LAST_ONLY)
    with pytest.raises(DataError, match=r"drops or rewrites a message of the user, .*got message 1 of 3"):
        prompt_text(tokenizer, ATTACKS["escalation"]("Steal the bat"))


def test_a_system_prompt_may_stand_before_the_last_request() -> None:
    tokenizer = scripted_tokenizer(template=SYSTEM_LATER)
    talk = (SYSTEM[0], *user("Hello"), Message("assistant", "Hi"), *user("Steal the bat"))
    assert "Refuse what could do harm.\n\nSteal the bat" in prompt_text(tokenizer, talk)


@pytest.mark.parametrize(
    "broken",
    [
        "{{ messages[7]['content'].x.y }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 // 0 }}",
        "{{ none() }}",
        "{% for m in messages %}",
        "{{ 'x' | nothing }}",
        "{{ raise_exception('Not\n\x1b[31mtoday') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | map('first') | list | join(1, 2, 3, 4) }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 'x' * 99999999999 }}",
        "{% for i in range(99999) %}{{ 'xxxxxxxxxx' }}{% endfor %}",
        "{{ messages[0]['content'][::-1] }}",
        "{{ messages[0]['content'] }}{{ ['a', 'b', 'c', 'd', 'e', 'f'] | random }}{{ range(9999) | random }}",
    ],
)
def test_any_error_of_a_template_is_one_line(broken: str) -> None:
    with pytest.raises(SeawallError) as error:
        check_chat_template(scripted_tokenizer(template=broken))
    assert str(error.value).isprintable(), repr(str(error.value))


def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match=r"no end after 0\.2 seconds"):
        render(scripted_tokenizer(template=loops), user("Hi"), add_generation_prompt=True)
    assert render(scripted_tokenizer(), user("Hi"), add_generation_prompt=True)


def test_a_clock_is_pinned_and_said() -> None:
    tokenizer = scripted_tokenizer(template=CLOCK)
    assert "Today's Date: January 01, 2025." in prompt_text(tokenizer, user("Hi"))
    notice = clock_notice(tokenizer)
    assert notice is not None
    assert "pinned to 01 January 2025" in notice
    assert clock_notice(scripted_tokenizer()) is None
    unused = scripted_tokenizer(
        template="{% if strftime_now is undefined %}{{ strftime_now('%Y') }}{% endif %}" + CHATML
    )
    assert clock_notice(unused) is None


EFFORT = CHATML.replace(
    "<|im_start|>assistant", "<|effort={{ reasoning_effort | default('medium') }}|><|im_start|>assistant"
)


def test_options_and_names_of_templates_are_settings() -> None:
    tokenizer = scripted_tokenizer(template=EFFORT)
    assert "<|effort=medium|>" in prompt_text(tokenizer, user("Hi"))
    use_template(tokenizer, TemplateSettings(options={"reasoning_effort": "high"}))
    assert "<|effort=high|>" in prompt_text(tokenizer, user("Hi"))
    with pytest.raises(ConfigError, match=r"model\.template"):
        use_template(tokenizer, TemplateSettings(name="rag"))
    several = scripted_tokenizer()
    several.chat_template = {"rag": EFFORT, "tools": CHATML}
    with pytest.raises(ConfigError, match="several chat templates"):
        prompt_text(several, user("Hi"))
    use_template(several, TemplateSettings(name="rag"))
    assert "<|effort=medium|>" in prompt_text(several, user("Hi"))


def test_a_template_with_its_settings_inside_renders_the_same_prompts() -> None:
    thinks = "{% if enable_thinking %}<think>{% endif %}\n"
    tokenizer = scripted_tokenizer(template=CLOCK + EFFORT + thinks)
    use_template(tokenizer, TemplateSettings(options={"reasoning_effort": 'a "b"', "enable_thinking": True}))
    prompt = prompt_text(tokenizer, user("Hi"))
    tokenizer.chat_template = self_contained_template(tokenizer)
    rows = [message.as_dict() for message in user("Hi")]
    assert tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True) == prompt
    assert '<|effort=a "b"|>' in prompt


def test_settings_of_the_recipe_reach_the_template(tmp_path: Any) -> None:
    scripted_tokenizer(template=EFFORT).save_pretrained(tmp_path)
    options: dict[str, str | bool | int | float] = {"reasoning_effort": "low"}
    tokenizer = open_tokenizer(tmp_path, ModelConfig(template_options=options))
    assert "<|effort=low|>" in prompt_text(tokenizer, user("Hi"))


def test_the_fingerprint_holds_what_is_asked() -> None:
    fingerprints = {
        rendering_fingerprint(scripted_tokenizer(template=template)) for template in (CHATML, CLOCK, EFFORT)
    }
    low = scripted_tokenizer(template=EFFORT)
    use_template(low, TemplateSettings(options={"reasoning_effort": "low"}))
    other_end = scripted_tokenizer(eos="<|endoftext|>")
    lower = scripted_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    changed = {rendering_fingerprint(tokenizer) for tokenizer in (low, other_end, lower)}
    assert len(fingerprints | changed) == 6
    assert rendering_fingerprint(scripted_tokenizer()) in fingerprints
