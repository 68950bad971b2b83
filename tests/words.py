"""Command lines: two that differ in a flag, and what a shell makes of one that is pasted."""

import re

# In a bare word zsh expands these, or refuses the line if no file matches: `mlx:cpu*2`, `.[test]`.
GLOBS = re.compile(r"""(?:^|(?<=\s))[#=].*|\S*[][*?()!'"]\S*""", re.MULTILINE)
LITERAL = re.compile(
    r"""<<'(\w+)'\n.*?^\1$|'[^']*'|"(?:\\.|[^"\\!])*"|\\.|\$[\w?]+""", re.MULTILINE | re.DOTALL
)


def misread_by_zsh(text):
    """Return the parts of shell lines that an interactive zsh, a Mac's shell, takes for no text.

    They are comments, which it passes on as arguments, globs, `=program`, `!` of its history, and
    quotes that stay open.

    >>> misread_by_zsh("train --workers cpu*2 --prompt 'a*' # it's")
    ['cpu*2', "# it's"]
    """
    return GLOBS.findall(LITERAL.sub("_", text))


def changed(words, *more):
    """Return the words of a command line, with the flags in `more` in place of its own.

    >>> changed(["train", "--steps", "5", "--quiet"], "--steps=6")
    ['train', '--quiet', '--steps=6']
    """
    flags = {word.partition("=")[0] for word in more if word.startswith("--")}
    kept, own = list[str](), ""
    for word in words:
        own = word.partition("=")[0] if word.startswith("--") else own
        if own not in flags:
            kept.append(word)
    return [*kept, *more]
