"""Read the text of word processors' documents: `.docx` by python-docx, `.odt` by odfpy.

Both come with the extra `mlxhog[office]`. A file is one document, with a line for each paragraph,
heading and row of a table, whose cells tabs separate; tracked changes count as accepted. Headers,
footers, notes, comments and pictures are left out.
"""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlxhog.base import reading
from mlxhog.base.quantities import format_bytes
from mlxhog.data.records import package
from mlxhog.errors import DataError, message_of

OFFICE_SUFFIXES = frozenset([".docx", ".odt"])
_EXTRA = "'mlxhog[office]'"


def office_text(path: Path) -> bytes:
    """Return the text of a document in UTF-8.

    Raises:
        DataError: the file is damaged, encrypted, not such a document, or too large unpacked.
        EnvironmentLacks: the package that reads it is not installed.
    """
    suffix = path.suffix.lower()
    module = package(
        "docx" if suffix == ".docx" else "odf.opendocument", f"reading {suffix}", _EXTRA
    )
    try:
        with reading.open_regular(path) as file:
            reading.refuse_lfs_pointer(path, file.peek(64), DataError)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            xml = (one for one in entries if one.filename.lower().endswith((".xml", ".rels")))
            n_bytes = sum(one.file_size for one in xml)
            if n_bytes > reading.MAX_BYTES:
                raise DataError(
                    f"{path} has {format_bytes(n_bytes)} of text unpacked, and at most "
                    f"{format_bytes(reading.MAX_BYTES)} are read; split it"
                )
            file.seek(0)
            if suffix == ".docx":
                lines = _word_lines(module.Document(file).element.body)
            else:
                lines = _odt(module.load(file).text)
            return "".join(f"{line}\n" for line in lines).encode(errors="replace")
    except DataError:
        raise
    except Exception as error:  # the packages raise errors of any type for damaged XML
        raise DataError(
            f"{path} is damaged, encrypted or no {suffix} ({message_of(error)}); save it again"
        ) from error


# The objects of python-docx leave out insertions and content controls, and repeat merged cells.


def _word_lines(element: Any) -> Iterator[str]:
    for one in _within(element, "p", "tr"):
        if one.tag.endswith("}p"):
            yield "".join(map(_run_text, _within(one, "r")))
        else:
            yield "\t".join(" ".join(_word_lines(cell)) for cell in _within(one, "tc"))


def _run_text(run: Any) -> str:
    if run.tag.endswith("/math}r"):  # of an equation, which python-docx does not know
        return "".join(one.text or "" for one in run.iterchildren("{*}t"))
    return str(run.text)


def _within(element: Any, *names: str) -> Iterator[Any]:
    """Yield the outermost elements of some names that are not deleted or moved away."""
    for one in element.iterchildren("*"):
        name = one.tag.rpartition("}")[2]
        if name in names:
            yield one
        elif name not in ("del", "moveFrom"):
            yield from _within(one, *names)


def _odt(text: Any) -> Iterator[str]:
    from odf import teletype

    def lines(element: Any) -> Iterator[str]:
        for one in element.childNodes:
            name = getattr(one, "tagName", "")
            if name in ("text:p", "text:h"):
                yield teletype.extractText(one)
            elif name == "table:table-row":
                yield "\t".join(" ".join(lines(cell)) for cell in one.childNodes)
            else:
                yield from lines(one)

    _leave_out(text, "text:tracked-changes text:note office:annotation svg:title svg:desc".split())
    return lines(text)


def _leave_out(element: Any, names: Sequence[str]) -> None:
    for one in [*element.childNodes]:
        if getattr(one, "tagName", "") in names:
            element.removeChild(one)
        else:
            _leave_out(one, names)
