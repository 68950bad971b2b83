"""`mlxhog completion`: completion of commands, options and their values in a shell.

The shell's function runs `mlxhog completion SHELL -- WORDS` at every completion, so the words come
from the parsers. It imports the same modules as the `--help` of a command.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlxhog.cli.flags import Flags, Word, flags_of
from mlxhog.errors import ConfigError
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

RUNS = ("run", "run_or_checkpoint", "config_or_run", "[run]", "run...", "checkpoint", "resume")
MODELS = ("model", "config_or_run", "config", "subject", "name_or_file")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    flags = Flags("completion", ABOUT, EXAMPLES, ("SHELL", "[-- WORDS]"))
    flags.argument("shell", metavar="SHELL", choices=tuple(SCRIPTS), help="bash, zsh or fish")
    flags.argument("--json", action="store_true", help="one line of JSON: the script, or the words")
    parsed = flags.parse(arguments[:split])
    if parsed.problems:
        raise ConfigError("\n".join(parsed.problems))
    shell = parsed.other.shell
    if split == len(arguments):
        print(json.dumps({"script": SCRIPTS[shell]}) if parsed.other.json else SCRIPTS[shell])
        return 0
    words = list(candidates(arguments[split + 1 :], shell))
    if parsed.other.json:
        print(json.dumps(words))
        return 0
    out = verbatim(sys.stdout)  # it keeps tabs
    for line in map(printable_cells, words):
        out.write(f"{line}\n")
    return 0


def printable_cells(line: str) -> str:
    """Return a line without control characters, except the tab between a word and its help."""
    return "\t".join(map(printable, line.split("\t", 1)))


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
    glued = False
    for word in words:
        if joined and (glued or word in BREAKS):
            joined[-1] += word
        else:
            joined.append(word)
        glued = word in BREAKS
    return joined


def _completions(before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield the possible next words, and their help."""
    from mlxhog.cli import COMMANDS

    if not before:
        yield from COMMANDS.items()
        yield from (("--help", "the list of commands"), ("--version", ""))
        return
    command, *rest = before
    if command not in COMMANDS:
        return
    names = [command]
    if command == "mad":
        from mlxhog.cli.mad import COMMANDS as MAD

        if not rest:
            yield from ((name, what) for name, (_, what) in MAD.items())
        if not rest or rest[0] not in MAD:
            return
        names.append(rest.pop(0))
    flags = flags_of(*names)
    yield from _of_command(list(flags.words()) if flags else [], rest, current)


def _of_command(
    words: Sequence[Word], before: Sequence[str], current: str
) -> Iterator[tuple[str, str]]:
    by_flag = {flag: word for word in words for flag in word.flags}
    flag, equals, _ = current.partition("=")
    if equals and flag in by_flag:
        yield from ((f"{flag}={value}", "") for value in _values(by_flag[flag]))
        return
    last = by_flag.get(before[-1]) if before else None
    if last is not None and last.takes_value:
        yield from ((value, "") for value in _values(last))
        return
    if not current.startswith("-"):
        for word in words:
            if not word.flags:
                yield from ((value, "") for value in _values(word))
        return
    for flag, word in by_flag.items():
        yield flag, word.help.partition(" [")[0]


def _values(word: Word) -> Iterator[str]:
    yield from word.values
    names = {word.name.lower(), *(flag.lstrip("-") for flag in word.flags)}
    if not names.isdisjoint(RUNS):
        yield "latest"
        yield from sorted(path.parent.name for path in Path("runs").glob("*/run.json"))
    if not names.isdisjoint(MODELS):
        spec = importlib.util.find_spec("mlxhog.models")
        for folder in (spec and spec.submodule_search_locations) or ():
            models = sorted(path.stem for path in Path(folder).glob("*.yaml"))
            yield from (name for name in models if not name.startswith("space-"))
    if "[problem]" in names or "problem" in names:
        from mlxhog.classic.problems import PROBLEMS

        yield from PROBLEMS
