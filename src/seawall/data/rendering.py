"""Renders conversations with a model's chat template, and checks what the model is asked.

The one place where a template runs. Every render has a time limit, any error of a template is one line, the clock is
pinned, and the content of every message must occur in the prompt, in order.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.exceptions import TemplateError

from seawall.data.types import Messages, user
from seawall.errors import ConfigError, DataError, SeawallError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLOCK = datetime(2025, 1, 1, 12, 0, 0)
"""The date and time of every template that writes one."""
RENDER_SECONDS = 10.0
"""Processor time that one render may take."""
_ADDED_CHARACTERS = 200_000
"""Characters that a template may add to a conversation."""

# Hybrid models (Qwen3, GLM-4.5 and others) would otherwise reason before they answer. Templates without this option
# ignore it.
DEFAULT_OPTIONS: Mapping[str, Any] = {"enable_thinking": False}

_ERRORS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
)
"""The errors of Python that code of a template can raise."""
_DIGITS = 8
_DIRECTIVES = "YmdBbAaHMSyjpIfcxXZzGVuwUW"
_SETTINGS = "_seawall_template"


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """What a recipe says about the chat template.

    Attributes:
        name: of one of the tokenizer's named templates; None takes the default one.
        options: variables of the template, such as `enable_thinking` and `reasoning_effort`.
    """

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def use_template(tokenizer: PreTrainedTokenizerBase, settings: TemplateSettings) -> None:
    """Renders with these settings whenever this tokenizer renders.

    Raises:
        ConfigError: the tokenizer has no template of this name.
    """
    templates = tokenizer.chat_template
    names = sorted(templates) if isinstance(templates, dict) else []
    if settings.name is not None and settings.name not in names:
        raise ConfigError(
            f"model.template: the tokenizer has no chat template {settings.name!r}",
            got=settings.name,
            expected=", ".join(names) or "null: the tokenizer's templates have no names",
        )
    setattr(tokenizer, _SETTINGS, settings)


def template_settings(tokenizer: PreTrainedTokenizerBase) -> TemplateSettings:
    """The settings of `use_template`, or the defaults."""
    settings = vars(tokenizer).get(_SETTINGS)
    return settings if isinstance(settings, TemplateSettings) else TemplateSettings()


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer without a chat template, or with one that cannot be measured, before any other work.

    Raises:
        DataError: the tokenizer has no chat template; the template drops a plain request, or renders the same
            conversation differently each time.
        ConfigError: the tokenizer has several named templates and no default.
    """
    _require_bounded(template_source(tokenizer))
    request = user("Please name a colour.")
    first, second = (render(tokenizer, request, add_generation_prompt=True) for _ in range(2))
    require_contents(request, first)
    if first != second:
        raise DataError(
            "the chat template renders one conversation differently each time",
            got=f"{first[:60]!r} and {second[:60]!r}",
            expected="equal prompts, so that a measurement can be repeated",
            remedy="remove the random part of the template",
        )


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    add_generation_prompt: bool,
    options: Mapping[str, Any] | None = None,
    clock: datetime = CLOCK,
    extra: Mapping[str, str] | None = None,
) -> str:
    """The text that the chat template makes of a conversation.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation.
        add_generation_prompt: whether to open the assistant's turn.
        options: further variables of the template.
        clock: the date that the template sees.
        extra: further fields of the last message.

    Raises:
        DataError: the tokenizer has no chat template; the template refuses the conversation, fails, takes longer than
            `RENDER_SECONDS`, or writes far more than the conversation.
    """
    source, settings = template_source(tokenizer), template_settings(tokenizer)
    rows = [message.as_dict() for message in messages]
    rows[-1] |= extra or {}
    roles = ", ".join(message.role for message in messages)
    with _one_line("the chat template refuses a conversation", f" for the roles {roles}"), _time_limit(RENDER_SECONDS):
        text = tokenizer.apply_chat_template(
            rows,
            chat_template=pinned(source, clock),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **{**DEFAULT_OPTIONS, **settings.options, **(options or {})},
        )
    if len(text) > _ADDED_CHARACTERS + 3 * sum(len(message.content) for message in messages):
        raise DataError(
            "the chat template writes too much text",
            got=f"{len(text):,} characters",
            expected=f"the conversation and at most {_ADDED_CHARACTERS:,} characters more",
        )
    return str(text)


def require_contents(messages: Messages, text: str) -> None:
    """Checks that the content of every message occurs in a rendered prompt, in order.

    A system message may stand in a later turn: templates without a system role write it before the last request.

    Raises:
        DataError: the template drops or rewrites a message.
    """
    missing = _first_missing(messages, text)
    if missing is None:
        return
    others = tuple(message for message in messages if message.role != "system")
    system = "".join(message.content.strip() for message in messages if message.role == "system")
    if system and _first_missing(others, text) is None and system in _remainder(others, text):
        return
    message = messages[missing]
    raise DataError(
        f"the chat template drops or rewrites a message of the {message.role}, so its prompt is another",
        got=f"message {missing + 1} of {len(messages)}: {message.content.strip()[:60]!r} is not in the prompt",
        expected="a prompt with the content of every message, in order",
        remedy="leave out what needs such messages (a safety prompt, an attack of several turns), or use a template "
        "that writes them",
    )


def clock_notice(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """One line where the chat template writes the date, which is pinned; None where it writes none."""
    request = user("Please name a colour.")
    days = (CLOCK, datetime(1999, 12, 31, 23, 59, 59))
    first, second = (render(tokenizer, request, add_generation_prompt=True, clock=day) for day in days)
    if first == second:
        return None
    return f"the chat template writes the date: pinned to {CLOCK:%d %B %Y}, so that every day gives the same prompts"


def _first_missing(messages: Messages, text: str) -> int | None:
    """The index of the first message whose content does not follow that of the messages before it."""
    position = 0
    for index, message in enumerate(messages):
        content = message.content.strip()
        start = text.find(content, position)
        if start < 0:
            return index
        position = start + len(content)
    return None


def _remainder(messages: Messages, text: str) -> str:
    """The text without the contents of these messages, which occur in order."""
    pieces = []
    for message in messages:
        before, _, text = text.partition(message.content.strip())
        pieces.append(before)
    return "\0".join([*pieces, text])


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The source of the chat template; an error where the tokenizer has none, or several and no default."""
    templates, name = tokenizer.chat_template, template_settings(tokenizer).name
    if not templates:
        raise DataError(
            "the tokenizer has no chat template",
            got=f"{type(tokenizer).__name__} of {tokenizer.name_or_path or 'an unnamed model'}",
            expected="an instruction-tuned model with its chat_template",
            remedy="use the model's instruct version, or add chat_template.jinja to its folder",
        )
    if isinstance(templates, dict):
        if (name or "default") not in templates:
            raise ConfigError(
                "the tokenizer has several chat templates and no default",
                got=", ".join(sorted(templates)),
                remedy="name one of them: model.template",
            )
        return str(templates[name or "default"])
    return str(templates)


def _require_bounded(source: str) -> None:
    """Refuses arithmetic that no time limit interrupts: powers, and products with huge numbers."""
    with _one_line("the chat template cannot be read"):
        tokens = [(kind, str(value)) for _, kind, value in jinja2.Environment().lex(source)]
    huge = ("integer", "float")
    token = next((text for kind, text in tokens if text == "**" or (kind in huge and len(text) > _DIGITS)), None)
    if token is not None:
        raise DataError("the chat template computes with huge numbers", got=token, expected="a template of messages")


def pinned(source: str, clock: datetime) -> str:
    """The template with its clock as a macro: transformers passes no functions to templates."""
    if "strftime_now" not in source:
        return source
    filters = "".join(
        f" | replace({directive!r}, {clock.strftime('%' + directive[-1])!r})"
        for letter in _DIRECTIVES
        for directive in (f"%{letter}", f"%-{letter}")
    )
    return f"{{%- macro strftime_now(format='%c') -%}}{{{{ format{filters} }}}}{{%- endmacro +%}}{source}"


class _TooSlowError(RuntimeError):
    """A render exceeds its time limit."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `_TooSlowError` inside after that much processor time; off the main thread there is no limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGVTALRM"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlowError(f"no end after {seconds:g} seconds")

    earlier = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)


@contextmanager
def _one_line(problem: str, context: str = "") -> Iterator[None]:
    """Turns any error of a template into one line."""
    try:
        yield
    except SeawallError:
        raise
    except _ERRORS as error:
        printable = "".join(letter if letter.isprintable() else " " for letter in str(error))
        text = re.sub(r"\s+", " ", printable).strip()[:200] or type(error).__name__
        name = "" if isinstance(error, TemplateError | _TooSlowError) else f"{type(error).__name__}: "
        raise DataError(
            problem,
            got=f"{name}{text}{context}",
            remedy="remove the roles that this model does not know, or correct the template",
        ) from None
