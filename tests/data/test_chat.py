from __future__ import annotations

import json
from pathlib import Path

import pytest

from seawall.data.chat import iter_chat_jsonl, read_chat_jsonl, to_exchange
from seawall.data.types import Exchange, Message
from seawall.errors import DataError

USER = {"role": "user", "content": "Hello"}
REPLY = {"role": "assistant", "content": "Hi there"}
SYSTEM = {"role": "system", "content": "Be brief"}
GOOD = json.dumps({"messages": [USER]})


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "chat.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def row(*messages: object, **fields: object) -> str:
    return json.dumps({"messages": list(messages), **fields})


def test_rows_keep_their_messages_goal_attack_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "", row(SYSTEM, USER, REPLY, USER, goal=" Do it ", attack="mine", source="x"))
    first, second = read_chat_jsonl(path)
    assert first.messages == (Message("user", "Hello"),)
    assert (first.goal, first.attack, first.line) == (None, None, 1)
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "user"]
    assert (second.goal, second.attack, second.line) == ("Do it", "mine", 3)
    assert second.extra == {"source": "x"}
    assert second.where == f"{path}:3"


def test_content_is_kept_to_the_letter(tmp_path: Path) -> None:
    content = "  two\nlines \u2028 and é “quotes”\t "
    (only,) = read_chat_jsonl(write(tmp_path, row({"role": "user", "content": content})))
    assert only.messages[0].content == content


def test_unescaped_line_separators_inside_a_string_do_not_end_the_line(tmp_path: Path) -> None:
    line = json.dumps({"messages": [{"role": "user", "content": "a\u2028b\u0085c"}]}, ensure_ascii=False)
    (only,) = read_chat_jsonl(write(tmp_path, line))
    assert only.messages[0].content == "a\u2028b\u0085c"


def test_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n{GOOD}\r\n".encode())
    assert [found.line for found in read_chat_jsonl(path)] == [1, 2]


def test_attack_name_is_understood_too(tmp_path: Path) -> None:
    (only,) = read_chat_jsonl(write(tmp_path, row(USER, attack_name="mine")))
    assert only.attack == "mine"


def test_an_exchange_ends_with_the_assistant(tmp_path: Path) -> None:
    (only,) = read_chat_jsonl(write(tmp_path, row(USER, REPLY, goal="g")), ending="assistant")
    assert to_exchange(only) == Exchange((Message("user", "Hello"),), "Hi there", "g")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ('{"messages": [{"role": "user", "cont', "not JSON"),
        ("[1]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("9" * 5000, "unreadable JSON; got "),
        ("[" * 100_000, "unreadable JSON; got "),
        (b'{"messages": "\xff\xfe"}', "not UTF-8"),
        (b'{"messages": "a\x00b"}', "NUL byte"),
        (GOOD.encode("utf-16"), "NUL byte"),
        (row({"role": "user", "content": "a\x00b"}), "NUL character"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
        ('{"conversations": []}', "'messages' is missing"),
        ('{"messages": []}', "'messages' is not a conversation"),
        ('{"messages": "hello"}', "'messages' is not a conversation"),
        ('{"messages": null}', "'messages' is not a conversation"),
        (row("hello"), "message 1 is not an object"),
        (row({"from": "human", "value": "x"}), "got None; expected system, user or assistant"),
        (row({"role": "tool", "content": "x"}), "got 'tool'"),
        (row({"role": ["user"], "content": "x"}), "got ['user']; expected system, user or assistant"),
        (row({"role": "user"}), "message 1 has no text"),
        (row({"role": "user", "content": "  "}), "message 1 has no text"),
        (row({"role": "user", "content": [{"type": "text", "text": "x"}]}), "message 1 has no text; got [{"),
        (row({**USER, "tool_calls": [1]}), "'tool_calls'"),
        (row(REPLY), "message 1 is out of turn; got assistant; expected user"),
        (row(USER, USER), "message 2 is out of turn; got user; expected assistant"),
        (row(USER, SYSTEM), "message 2 is out of turn"),
        (row(SYSTEM), "got system; expected a user message"),
        (row(USER, REPLY), "got assistant; expected a last message of the user"),
        (row(USER, goal=""), "'goal' holds no text"),
        (row(USER, attack=3), "'attack' holds no text"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(tmp_path: Path, line: str | bytes, says: str) -> None:
    path = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(DataError) as caught:
        read_chat_jsonl(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_prompt_where_an_exchange_is_needed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a last message of the assistant"):
        read_chat_jsonl(write(tmp_path, GOOD), ending="assistant")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="no conversation in the file"):
        read_chat_jsonl(write(tmp_path, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read; got No such file"):
        read_chat_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="cannot be read; got Is a directory"):
        read_chat_jsonl(tmp_path)


def test_a_file_is_streamed_so_rows_before_a_bad_line_arrive(tmp_path: Path) -> None:
    rows = iter_chat_jsonl(write(tmp_path, GOOD, GOOD, "{"))
    assert [next(rows).line, next(rows).line] == [1, 2]
    with pytest.raises(DataError, match=r"chat\.jsonl:3: "):
        next(rows)
