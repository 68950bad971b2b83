"""Conversations as text: one template for `train`, `--follow`, `serve` and `generate`.

    System: Be brief.
    User: Say one.
    Assistant: one
    User: And two?
    Assistant:

A message is a turn: it begins a line with the label of its role. An answer ends with BOS, which
training adds after every answer, and where the model begins another turn (`STOPS`). A label that
begins a line within a message gets a blank before it, so that no message looks like several.
`texts/chat_template.jinja` writes the same text, after BOS, for `apply_chat_template`.

An answer is encoded apart from the text around it (`cut_at_answers`): some tokenizers join the
full stop at its end with the line break behind it.
"""

import json
import re
from itertools import pairwise
from typing import Any

from mlxhog.errors import DataError, shown

LABELS = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "assistant": "Assistant",
    "tool": "Tool",
}
"""Role -> label of its turns."""

JOINT = "\n"  # between two turns
STOPS = tuple(f"\n{label}:" for label in dict.fromkeys(LABELS.values()))
"""Texts that end an answer, because another turn begins."""

_SPEAKERS = {"human": "user", "gpt": "assistant"}
"""Roles in ShareGPT's field `from`, whose text is in `value`."""

_ANSWER = f"{LABELS['assistant']}:"
_TURN = re.compile("|".join(STOPS))
_BEGINNINGS = tuple(f"{label}: " for label in dict.fromkeys(LABELS.values()))
_PARTS = ("text", "refusal")  # types of the parts of a content that are text


def prompt(messages: object, *, continues: bool = False) -> str:
    """Return a conversation as the prompt of its next answer.

    With `continues` the last message, the assistant's, is continued in place of a new turn. Each
    message has a role of `LABELS` and a content: a text, or a list of parts of type text. An
    assistant's may have a refusal or tool calls instead.

    Raises:
        DataError: the messages are malformed, or a part is not text; the text names the message.
    """
    turns = [f"{label}: {text}" for label, text in _turns(messages)]
    if not continues:
        return JOINT.join([*turns, _ANSWER])
    if not turns[-1].startswith(_ANSWER) or turns[-1] == f"{_ANSWER} ":
        raise DataError(
            f"message {len(turns)}, the last, is not a text of the assistant; only such a message "
            "can be continued: leave continue_final_message out, or add the beginning of an answer"
        )
    assert isinstance(messages, list)
    content = messages[-1].get("content")
    end = content[len(content.rstrip()) :] if isinstance(content, str) else ""
    return JOINT.join(turns) + end  # with the blanks at the end of the beginning


def context(text: str) -> str | None:
    """Return a conversation up to its first answer to a user, or ""; None for other text.

    The first answer may be a greeting, before any message of a user.
    """
    if not text.startswith(_BEGINNINGS):
        return None
    asked = max(f"\n{text}".find("\nUser: "), 0)
    begin, answer, _ = text[asked:].partition(f"\n{_ANSWER}")
    return (text[:asked] + begin + answer) * bool(answer)


def question(context: str) -> str | None:
    """Return the user's last message before an answer; None for other text."""
    begin = f"\n{context}".rpartition("\nUser: ")[2]
    return begin.removesuffix(f"\n{_ANSWER}") if begin.endswith(f"\n{_ANSWER}") else None


def pieces(messages: object) -> list[str]:
    """Cut a conversation before and after each answer: context, answer, context, ...

    Joined, these are the conversation. Messages after the last answer are the last context. A
    message of the assistant with `"weight": 0`, as in OpenAI's format, is context.

    Raises:
        DataError: as `prompt`; or the assistant has no message, or an empty one.
    """
    cut, context = list[str](), list[str]()
    for number, (label, text) in enumerate(_turns(messages), 1):
        context.append(f"{JOINT * (number > 1)}{label}:")
        if label != LABELS["assistant"] or not _weight(number, messages):
            context.append(f" {text}")
        elif text:
            cut += ["".join(context), f" {text}"]
            context = []
        else:
            raise DataError(f"message {number}, an answer, is empty; remove this conversation")
    if not cut:
        raise DataError(
            "the conversation has no message of the assistant with loss (weight 0 masks one); "
            "remove it, or write it as one text"
        )
    return [*cut, "".join(context)] if context else cut


def cut_at_answers(text: str) -> list[str]:
    """Cut a text before and after each answer of a conversation, for a tokenizer.

    Joined, the parts are the text. A conversation has the same cuts in its `pieces` and as a whole.
    """
    if _ANSWER not in text:
        return [text]
    is_answer = text.startswith(_ANSWER)
    cuts = [0, len(_ANSWER) * is_answer]
    for turn in _TURN.finditer(text):
        cuts += [turn.start()] * is_answer
        is_answer = turn[0] == f"{JOINT}{_ANSWER}"
        cuts += [turn.end()] * is_answer
    return [text[begin:end] for begin, end in pairwise([*cuts, len(text)]) if begin < end]


def _weight(number: int, messages: Any) -> int:
    weight = messages[number - 1].get("weight")
    weight = 1 if weight is None else weight  # a table has None where a row has no weight
    if weight not in (0, 1):
        raise DataError(f"the weight of message {number} is {shown(weight)}; expected 0 or 1")
    return int(weight)


def _turns(messages: object) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"messages is {shown(messages)}; expected a list such as "
            '[{"role": "user", "content": "Hello"}]'
        )
    return [_turn(f"message {number}", message) for number, message in enumerate(messages, 1)]


def _turn(where: str, message: object) -> tuple[str, str]:
    if isinstance(message, dict) and "from" in message and "role" not in message:
        speaker = str(message["from"])
        message = {"role": _SPEAKERS.get(speaker, speaker), "content": message.get("value")}
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str) or role not in LABELS:
        raise DataError(
            f"{where} is {shown(message)}; expected a role ({', '.join(LABELS)}) and a content"
        )
    calls = message.get("tool_calls") or []
    text = _content(where, message.get("content")) or _content(where, message.get("refusal"))
    if message.get("content") is None and not text and not calls:
        raise DataError(f"{where} has no content; expected a text, or parts of type text")
    try:
        text += "".join(f"\ncall {_call(call['function'])}" for call in calls)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the tool_calls of {where} are {shown(calls)}; expected a list of functions with name "
            "and arguments"
        ) from error
    text = text.replace("\r\n", "\n").strip()
    for stop in STOPS:
        text = text.replace(stop, stop.replace("\n", "\n "))
    return LABELS[role], text


def _content(where: str, content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if isinstance(part, dict) and kind in _PARTS else None
        if not isinstance(text, str):
            raise DataError(f"the content of {where} has {shown(part)}; only text is supported")
        texts.append(text)
    return "".join(texts)


def _call(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f"{function['name']} {arguments}"
