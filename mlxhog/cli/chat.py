r"""Chat with a trained model; of a run that trains, with its newest weights.

Before each answer the model reads the conversation so far. /reset begins another one, /system TEXT
sets the message before it, Ctrl-C ends an answer, and Ctrl-D the chat. Without a terminal each line
of standard input is a message. A run that was not trained on conversations continues the text, and
says so.

Examples:
    chat latest
    chat latest/best --temperature 0.5 --max-new-tokens 400
    chat hf:NX-AI/xLSTM-7b --weights bfloat16 --yes
        14 GB of memory
    chat latest --json < questions.txt
"""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.base.interrupts import Interrupts
from mlxhog.base.reading import MAX_LINE_BYTES
from mlxhog.cli.frame import CommandResult, command, option
from mlxhog.cli.generate import Answer, AnswerOptions, plain, write
from mlxhog.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mlxhog.serving.model import LoadedModel

COMMANDS = ("/reset", "/system", "/exit")


@dataclass(frozen=True, kw_only=True)
class ChatConfig(AnswerOptions):
    """Options of `mlxhog chat`."""

    chat: bool = option(False, "talk in turns, even if the model was not trained on conversations")


class Conversation:
    """What was said, from which the prompt of the next answer is made.

    Without `has_turns` it is one text, which user and model continue by turns.
    """

    def __init__(self, *, has_turns: bool) -> None:
        self.has_turns, self.system = has_turns, ""
        self._turns: list[tuple[str, Answer]] = []

    def reset(self) -> None:
        """Begin another conversation, with the same system message."""
        self._turns.clear()

    def add(self, message: str, answer: Answer) -> None:
        """Keep a message and its answer; a model of texts may have ended the document."""
        self._turns.append((message, answer))
        if not self.has_turns and answer.finish_reason == "document_end":
            self.reset()

    def prompt(self, message: str) -> str:
        """Return the prompt of the answer to a message."""
        from mlxhog.data import conversations

        if not self.has_turns:
            return "".join(f"{text}{one.text}\n" for text, one in self._turns) + message
        turns = [("system", self.system)] * bool(self.system)
        for text, one in self._turns:
            turns += [("user", text), ("assistant", one.text)]
        said = [{"role": role, "content": text} for role, text in [*turns, ("user", message)]]
        return conversations.prompt(said)


@command()
def run(config: ChatConfig) -> int:
    from mlxhog.data import conversations

    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with closing(config.with_stops().load()) as model:
        about = "" if model.run is None else model.run.trained_on()
        talk = Conversation(has_turns=config.chat or about.endswith("(conversations)"))
        config = config.with_stops(*(conversations.STOPS if talk.has_turns else ()))
        for note in _notes(model, talk, about, is_terminal=is_terminal):
            print(note, file=sys.stderr, flush=True)
        for message in _messages(is_terminal=is_terminal):
            try:
                if _obeys(talk, message, is_terminal=is_terminal):
                    continue
                _answer(model, config, talk, message, is_terminal=is_terminal)
            except (ConfigError, DataError) as error:
                if not is_terminal:
                    raise
                print(error, file=sys.stderr, flush=True)
            except EOFError:
                break
    return 0


def _notes(
    model: "LoadedModel", talk: Conversation, about: str, *, is_terminal: bool
) -> Iterator[str]:
    """Yield lines on the weights, and on how the model answers."""
    if note := model.follower.source.note:
        yield note
    if not talk.has_turns:
        of = f"was trained on {about}" if about else "is of no run, so its training is not known"
        yield f"{model.name} {of}: it continues your text; --chat talks to it in turns"
    if is_terminal:
        yield (
            f"weights of {model.source_name}; Ctrl-C ends an answer, Ctrl-D the chat; "
            f"{', '.join(COMMANDS)}"
        )


def _messages(*, is_terminal: bool) -> Iterator[str]:
    """Yield the lines of the user that are not blank."""
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # `input` has a history and edits lines with it
    while True:
        if is_terminal:
            sys.stdout.flush()
            try:
                text = plain(input("> "), "standard input")
            except EOFError:
                print()
                return
            except (UnicodeDecodeError, ConfigError):
                again = "this line is not UTF-8 text, or it has a zero byte; type it again"
                print(again, file=sys.stderr, flush=True)
                continue
        elif line := sys.stdin.buffer.readline(MAX_LINE_BYTES):
            text = plain(line, "standard input")
        else:
            return
        if text := text.strip():
            yield text


def _obeys(talk: Conversation, message: str, *, is_terminal: bool) -> bool:
    """Obey a message that is one of `COMMANDS`; return whether it was one.

    EOFError ends the chat.
    """
    name, _, text = message.partition(" ")
    if name not in COMMANDS:
        if is_terminal and name.startswith("/"):
            raise ConfigError(f"no command {name}; commands are {', '.join(COMMANDS)}")
        return False
    if name == "/exit":
        raise EOFError
    if name == "/system":
        if not talk.has_turns:
            raise ConfigError("/system is for conversations, and this model continues text")
        talk.system = text.strip()
    else:
        talk.reset()
    return True


def _answer(
    model: "LoadedModel", config: ChatConfig, talk: Conversation, message: str, *, is_terminal: bool
) -> None:
    """Write the answer to a message, which Ctrl-C on a terminal ends between two tokens."""
    prompt = talk.prompt(message)
    answer, began_s = Answer(message), time.perf_counter()
    with Interrupts() as signals:
        for piece in model.answer([prompt], config):
            is_first = not answer.text
            answer.add(piece, model.follower.loaded(), time.perf_counter() - began_s)
            if is_first and talk.has_turns:
                answer.text = answer.text.lstrip()  # the blank after the label of its turn
            if not config.json:
                write(answer.text if is_first else piece.text)
            if signals.count:
                break
    if signals.count and not (is_terminal and signals.last == signal.SIGINT):
        raise KeyboardInterrupt
    if config.json:
        payload = answer.to_json(model.follower.source)
        CommandResult(payload).print(json=True)
    else:
        write("\n")
    talk.add(message, answer)
