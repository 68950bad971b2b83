"""Command lines of tests that differ in a flag: a flag may stand once only."""


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
