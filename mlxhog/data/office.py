"""Read the text of word processors' documents: `.docx` by python-docx, `.odt` by odfpy.

Both come with the extra `mlxhog[office]`. A file is one document, with a line for each paragraph,
heading and row of a table, whose cells tabs separate. Headers, footers, comments and pictures are
left out.
"""

import zipfile
from collections.abc import Iterator
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
            lines = _docx(module.Document(file)) if suffix == ".docx" else _odt(module.load(file))
            return "".join(f"{line}\n" for line in lines).encode(errors="replace")
    except DataError:
        raise
    except Exception as error:  # the packages raise errors of any type for damaged XML
        raise DataError(
            f"{path} is damaged, encrypted or no {suffix} ({message_of(error)}); save it again"
        ) from error


def _docx(content: Any) -> Iterator[str]:
    for one in content.iter_inner_content():
        if hasattr(one, "rows"):
            for row in one.rows:
                yield "\t".join(" ".join(_docx(cell)) for cell in row.cells)
        else:
            yield one.text


def _odt(document: Any) -> Iterator[str]:
    from odf import teletype

    def lines(element: Any) -> Iterator[str]:
        for one in element.childNodes:
            name = getattr(one, "tagName", "")
            if name in ("text:p", "text:h"):
                yield teletype.extractText(one)
            elif name == "table:table-row":
                yield "\t".join(" ".join(lines(cell)) for cell in one.childNodes)
            elif name != "text:tracked-changes":
                yield from lines(one)

    return lines(document.text)
