"""svmlight lines one by one: slow, and able to say which line is wrong, and what about it."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

from mlxhog.classic.loaders.lines import Block, to_number, wrong
from mlxhog.classic.loaders.svmlight_block import ParsedRows

_COMMENT = re.compile(rb"#[^\n]*")
_QID = re.compile(rb"(?<=[ \t])qid:\d+(?=\s)")
_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def without_comments(text: bytes) -> bytes:
    """Lines without what no row consists of: comments, and the `qid:` of ranking data."""
    if b"#" in text:
        text = _COMMENT.sub(b"", text)
    return _QID.sub(b"", text) if b"qid:" in text else text


def parse_lines(block: Block) -> ParsedRows:
    """Rows of a block that may have comments; raises DataError about the first line in error."""
    labels, lengths, features, values = [], [], [], []
    for number, line in block.lines():
        words = words_of(line)
        if not words:
            continue
        labels.append(_label(words[0], block, number))
        pairs = [_pair(word, block, number) for word in words[1:]]
        if not pairs:
            wrong(block.path, number, f"label {words[0]} without features; leave empty rows out")
        for (before, _), (feature, _) in itertools.pairwise(pairs):
            if feature == before:
                wrong(block.path, number, f"feature {feature} is there twice; add its values up")
            if feature < before:
                wrong(
                    block.path,
                    number,
                    f"feature {feature} after {before}; sort the features of each line",
                )
        lengths.append(len(pairs))
        features += [feature for feature, _ in pairs]
        values += [value for _, value in pairs]
    return ParsedRows(
        np.array(labels, dtype=np.float64),
        np.array(lengths, dtype=np.int64),
        np.array(features, dtype=np.int32),
        np.array(values, dtype=np.float32),
    )


def words_of(line: bytes) -> list[str]:
    """The words of one line, without its end; none if it is empty or a comment."""
    return without_comments(line + b"\n").decode(errors="backslashreplace").split()


def _label(word: str, block: Block, line: int) -> float:
    label = to_number(word)
    if label is None or not math.isfinite(label):
        several = "; choose one of the labels of a row" if "," in word else ""
        wrong(block.path, line, f"the label is {word!r}; wanted a finite number{several}")
    return label


def _pair(word: str, block: Block, line: int) -> tuple[int, float]:
    name, colon, text = word.partition(":")
    feature = to_number(name)
    if not colon or feature is None or feature < 0 or feature % 1 != 0:  # NaN and infinity as well
        wrong(block.path, line, f"{word!r}; wanted FEATURE:VALUE with a whole number before it")
    if feature >= _INT32_MAX:
        wrong(block.path, line, f"feature {name}; wanted less than {_INT32_MAX}")
    value = to_number(text)
    if value is None or not math.isfinite(value) or abs(value) > _FLOAT32_MAX:
        wrong(block.path, line, f"feature {name} has value {text!r}; wanted a finite float32")
    return int(feature), value
