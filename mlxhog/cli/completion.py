"""Print a script that completes commands, options, values and runs in bash or zsh.

Without a match, the shell completes files.

  bash: eval "$(mlxhog completion bash)" in ~/.bashrc
  zsh:  eval "$(mlxhog completion zsh)" in ~/.zshrc, after compinit

With -- and the arguments of a command line, it prints the possible completions of the last one, one
a line.

Examples:
    completion bash
    completion zsh
    completion bash -- train --st
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mlxhog.cli.frame import CommandResult, Json, argument, command
from mlxhog.cli.frame.flags import choices_of
from mlxhog.config.options import Option

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
}

BREAKS = (":", "=")
"""Characters at which bash splits arguments."""

RUNS = {"run", "src", "run_or_checkpoint", "config_or_run", "subject", "resume"}
MODELS = {"model", "config_or_run", "subject", "name_or_file"}


@dataclass(frozen=True, kw_only=True)
class _Completion(Json):
    shell: str = argument("SHELL", "bash or zsh", choices=tuple(SCRIPTS))
    argv: tuple[str, ...] = argument(
        "[-- ARGUMENTS]", "a command line", metavar="ARGUMENTS", many=True
    )


@command()
def run(config: _Completion) -> CommandResult:
    if not config.argv:
        return CommandResult({"script": SCRIPTS[config.shell]}, SCRIPTS[config.shell])
    found = list(candidates(config.argv, config.shell))
    return CommandResult(found, found)


def candidates(argv: Sequence[str], shell: str) -> Iterator[str]:
    """Yield the completions of the last argument.

    bash splits arguments at `BREAKS` and gets the part after the last one.
    """
    joined = [""]
    for before, text in zip(["", *argv], argv, strict=False):
        if shell == "bash" and joined[-1] and (before in BREAKS or text in BREAKS):
            joined[-1] += text
        else:
            joined.append(text)
    *before_it, current = joined[1:] or [""]
    begin = max(current.rfind(mark) for mark in BREAKS) + 1 if shell == "bash" else 0
    for text in _completions(before_it, current):
        if text.startswith(current):
            yield text[begin:]


def _completions(before: Sequence[str], current: str) -> Iterable[str]:
    """Return the arguments that may follow some others."""
    from mlxhog.cli import COMMANDS, find

    family = before[0] if before and before[0] in COMMANDS else ""
    known, rest = COMMANDS[family], before[1:] if family else before
    if not rest:
        return known if family else [*known, "--help", "--version"]
    if rest[0] not in known:
        return []
    command, rest = find(before)
    flags = command.flags()
    flag, equals, _ = current.partition("=")
    spec = flags.by_flag.get(flag if equals else ["", *rest][-1])
    if spec is not None and spec.type is not bool:
        return [f"{flag}={one}" if equals else one for one in _values(spec)]
    if current.startswith("-"):
        return ["--help", *flags.by_flag]
    places = (spec for spec in flags.specs() if spec.argument)
    return dict.fromkeys(one for spec in places for one in _values(spec))


def _values(spec: Option) -> Iterator[str]:
    yield from choices_of(spec)
    names = {spec.argument.strip("[].").lower() or spec.name, spec.metavar.lower()}
    if names & RUNS:
        yield "latest"
        yield from sorted(path.parent.name for path in Path("runs").glob("*/run.json"))
    if names & MODELS:
        files = sorted(Path(file.name) for file in resources.files("mlxhog.models").iterdir())
        named = (file.stem for file in files if file.suffix == ".yaml")
        yield from (name for name in named if not name.startswith("space-"))
    if spec.name == "problem":
        from mlxhog.research.classic.problems import PROBLEMS

        yield from PROBLEMS
