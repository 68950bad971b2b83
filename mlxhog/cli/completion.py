"""`mlxhog completion`: completion of commands, options and their values in a shell.

The shell's function runs `mlxhog completion SHELL -- WORDS` at every completion, so the words come
from the parsers. It imports the same modules as the `--help` of a command.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.flags import Flags, Json, words_of
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import Option, argument
from mlxhog.report.streams import printable, verbatim

ABOUT = """\
Print a script for completion of commands, options, their values and the names of runs. Without a
match, the shell completes files.

bash: eval "$(mlxhog completion bash)" in ~/.bashrc
zsh:  eval "$(mlxhog completion zsh)" in ~/.zshrc, after compinit
fish: mlxhog completion fish > ~/.config/fish/completions/mlxhog.fish

With -- and the words of a command line, it prints the possible completions of the last word, one
per line."""
EXAMPLES = ("completion bash", "completion zsh", "completion fish", "completion bash -- train --st")

SCRIPTS = {
    "bash": """\
_mlxhog() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <("${COMP_WORDS[0]}" completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _mlxhog mlxhog""",
    "zsh": """\
_mlxhog() {
    local -a found
    found=("${(@f)$("${words[1]}" completion zsh -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then
        compadd -- "${found[@]}"
    else
        _files
    fi
}
compdef _mlxhog mlxhog""",
    "fish": """\
function __mlxhog_words
    set -l words (commandline -opc) (commandline -ct)
    $words[1] completion fish -- $words[2..-1] 2>/dev/null
end
complete -c mlxhog -a '(__mlxhog_words)'""",
}
BREAKS = (":", "=")
"""Characters at which bash splits words."""

RUNS = ("run", "run_or_checkpoint", "config_or_run", "checkpoint", "resume")
MODELS = ("model", "config_or_run", "config", "subject", "name_or_file")


@dataclass(frozen=True, kw_only=True)
class CompletionConfig(Json):
    """Options of `mlxhog completion`."""

    shell: str = argument("SHELL", "bash, zsh or fish", choices=tuple(SCRIPTS))
    words: tuple[str, ...] = argument("[-- WORDS]", "a command line", many=True)


@command("completion", ABOUT, EXAMPLES, CompletionConfig)
def run(config: CompletionConfig) -> Report:
    """Print the script, or complete a command line."""
    if not config.words:
        script = SCRIPTS[config.shell]
        return Report({"script": script}, text=lambda: script)
    words = list(candidates(config.words, config.shell))

    def text() -> str:
        out = verbatim(sys.stdout)  # it keeps tabs between a word and its help
        for line in words:
            out.write("\t".join(map(printable, line.split("\t", 1))) + "\n")
        return ""

    return Report(words, text=text)


def candidates(words: Sequence[str], shell: str) -> Iterator[str]:
    """Yield the completions of the last word, in the format of the shell.

    bash gets the part after the last break of the word; fish gets the help after a tab.
    """
    words = _joined(words) if shell == "bash" else list(words)
    *before, current = words or [""]
    begin = max(current.rfind(mark) for mark in BREAKS) + 1 if shell == "bash" else 0
    for text, what in _completions(before, current):
        if text.startswith(current):
            yield f"{text}\t{what}" if shell == "fish" and what else text[begin:]


def _joined(words: Sequence[str]) -> list[str]:
    """Join the words that bash has split at `BREAKS`."""
    joined: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if joined and (before in BREAKS or word in BREAKS):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _completions(before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield the possible next words, and their help."""
    from mlxhog.cli import COMMANDS, find

    if not before:
        yield from COMMANDS.items()
        yield from (("--help", "the list of commands"), ("--version", ""))
        return
    if before[0] not in COMMANDS:
        return
    if before[0] == "mad":
        from mlxhog.cli.mad import COMMANDS as MAD

        if len(before) == 1:
            yield from ((name, what) for name, (_, what) in MAD.items())
        if len(before) == 1 or before[1] not in MAD:
            return
    command, rest = find(before)
    yield from _of_command(command.flags(), rest, current)


def _of_command(flags: Flags, before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    by_flag = {flag: spec for spec in flags.specs() for flag in spec.flags}
    flag, equals, _ = current.partition("=")
    if equals and flag in by_flag:
        yield from ((f"{flag}={value}", "") for value in _values(by_flag[flag]))
        return
    last = by_flag.get(before[-1]) if before else None
    if last is not None and not last.switch:
        yield from ((value, "") for value in _values(last))
    elif not current.startswith("-"):
        for spec in flags.specs():
            if spec.argument:
                yield from ((value, "") for value in _values(spec))
    else:
        yield from (("-h", ""), ("--help", "show this, and stop"))
        for flag, spec in by_flag.items():
            yield flag, spec.help


def _values(spec: Option) -> Iterator[str]:
    yield from words_of(spec)
    names = {spec.argument.strip("[].").lower() or spec.name, spec.metavar.lower()}
    if not names.isdisjoint(RUNS):
        yield "latest"
        yield from sorted(path.parent.name for path in Path("runs").glob("*/run.json"))
    if not names.isdisjoint(MODELS):
        spec_of = importlib.util.find_spec("mlxhog.models")
        for folder in (spec_of and spec_of.submodule_search_locations) or ():
            models = sorted(path.stem for path in Path(folder).glob("*.yaml"))
            yield from (name for name in models if not name.startswith("space-"))
    if spec.name == "problem":
        from mlxhog.classic.problems import PROBLEMS

        yield from PROBLEMS
