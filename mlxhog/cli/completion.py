"""`mlxhog completion`: completion of commands, options and their values in a shell.

The shell's function runs `mlxhog completion SHELL -- WORDS` at every completion, so the words come
from the parsers. It imports the same modules as the `--help` of a command.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mlxhog.cli.flags import Json, words_of
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import Option, argument
from mlxhog.report.streams import printable, verbatim

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
    [[ -n "${found[1]}" ]] && compadd -- "${found[@]}" || _files
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

RUNS = {"run", "run_or_checkpoint", "config_or_run", "checkpoint", "resume"}
MODELS = {"model", "config_or_run", "config", "subject", "name_or_file"}


@dataclass(frozen=True, kw_only=True)
class _Words(Json):
    shell: str = argument("SHELL", "bash, zsh or fish", choices=tuple(SCRIPTS))
    words: tuple[str, ...] = argument("[-- WORDS]", "a command line", metavar="WORDS", many=True)


@command("completion")
def run(config: _Words) -> Report:
    """Print a script for completion of commands, options, their values and the names of runs.

    Without a match, the shell completes files.

      bash: eval "$(mlxhog completion bash)" in ~/.bashrc
      zsh:  eval "$(mlxhog completion zsh)" in ~/.zshrc, after compinit
      fish: mlxhog completion fish > ~/.config/fish/completions/mlxhog.fish

    With -- and the words of a command line, it prints the possible completions of the last word,
    one per line.

    Examples:
        completion bash
        completion zsh
        completion fish
        completion bash -- train --st
    """
    if not config.words:
        return Report({"script": SCRIPTS[config.shell]}, SCRIPTS[config.shell])
    words = list(candidates(config.words, config.shell))
    if not config.json:
        out = verbatim(sys.stdout)  # it keeps tabs between a word and its help
        for line in words:
            out.write("\t".join(map(printable, line.split("\t", 1))) + "\n")
    return Report(words, [])


def candidates(words: Sequence[str], shell: str) -> Iterator[str]:
    """Yield the completions of the last word, in the format of the shell.

    bash splits words at `BREAKS` and gets the part after the last one; fish gets the help after a
    tab.
    """
    joined = [""]
    for before, word in zip(["", *words], words, strict=False):
        if shell == "bash" and joined[-1] and (before in BREAKS or word in BREAKS):
            joined[-1] += word
        else:
            joined.append(word)
    *before_it, current = joined[1:] or [""]
    begin = max(current.rfind(mark) for mark in BREAKS) + 1 if shell == "bash" else 0
    for text, what in _completions(before_it, current):
        if text.startswith(current):
            yield f"{text}\t{what}" if shell == "fish" and what else text[begin:]


def _completions(before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    from mlxhog.cli import COMMANDS, MAD, find

    if not before:
        yield from {**COMMANDS, "--help": "the list of commands", "--version": ""}.items()
    elif before == ["mad"]:
        yield from MAD.items()
    elif before[0] in COMMANDS and (before[0] != "mad" or before[1] in MAD):
        command, rest = find(before)
        flags = command.flags()
        flag, equals, _ = current.partition("=")
        spec = flags.by_flag.get(flag if equals else ["", *rest][-1])
        if spec is not None and not spec.switch:
            yield from ((f"{flag}={one}" if equals else one, "") for one in _values(spec))
        elif current.startswith("-"):
            yield "--help", "show this, and stop"
            yield from ((flag, spec.help) for flag, spec in flags.by_flag.items())
        else:
            specs = (spec for spec in flags.specs() if spec.argument)
            yield from ((one, "") for spec in specs for one in _values(spec))


def _values(spec: Option) -> Iterator[str]:
    yield from words_of(spec)
    names = {spec.argument.strip("[].").lower() or spec.name, spec.metavar.lower()}
    if names & RUNS:
        yield "latest"
        yield from sorted(path.parent.name for path in Path("runs").glob("*/run.json"))
    if names & MODELS:
        files = sorted(Path(file.name) for file in resources.files("mlxhog.models").iterdir())
        named = (file.stem for file in files if file.suffix == ".yaml")
        yield from (name for name in named if not name.startswith("space-"))
    if spec.name == "problem":
        from mlxhog.classic.problems import PROBLEMS

        yield from PROBLEMS
