"""The arena's first page: what tells an arena from other bytes, and a whole one from a damaged one.

    byte  bytes  field
       0      8  magic "MLXHOGAR"; written last, so that a half-made arena is not one yet
       8      4  version of this format
      12      4  bytes of this header
      16      8  bytes of the arena
      24      8  bytes of the layout's JSON, which starts on page 1
      32     32  SHA-256 of the layout's JSON
      64     64  run id, UTF-8, zero padded
     128     16  write mode, ASCII, zero padded
     144      8  pid of the creator
     152      8  start time of the creator (`process_start_time`)
     160     32  SHA-256 of the bytes before

Little endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from mlxhog.arena.layout import PAGE, Layout
from mlxhog.errors import ArenaError

MAGIC = b"MLXHOGAR"
VERSION = 2
_BODY = struct.Struct("<8sIIQQ32s64s16sqQ")
_RUN_ID_BYTES = 64
HEADER_BYTES = _BODY.size + 32


@dataclass(frozen=True)
class Header:
    """The fields of the first page that an arena's users care for."""

    total_bytes: int
    layout_bytes: int
    layout_sha256: bytes
    run_id: str
    write: str
    creator_pid: int
    creator_start_time: int

    def pack(self) -> bytes:
        """The header's bytes, checksum included.

        Raises:
            ArenaError: the run id is longer than its field.
        """
        run_id = self.run_id.encode()
        if len(run_id) > _RUN_ID_BYTES:
            raise ArenaError(
                f"the run id {self.run_id!r} has {len(run_id)} bytes; at most {_RUN_ID_BYTES} fit"
            )
        body = _BODY.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            self.total_bytes,
            self.layout_bytes,
            self.layout_sha256,
            run_id,
            self.write.encode(),
            self.creator_pid,
            self.creator_start_time,
        )
        return body + hashlib.sha256(body).digest()


def read_header(data: memoryview) -> tuple[Header, Layout]:
    """Header and layout of an arena's bytes, every check passed.

    Args:
        data: the whole arena, or what there is of it.

    Raises:
        ArenaError: not an arena, one of another version, truncated, or damaged; says which.
    """
    if len(data) < HEADER_BYTES:
        raise ArenaError(f"no arena: {len(data)} bytes, its header alone has {HEADER_BYTES}")
    raw = bytes(data[:HEADER_BYTES])
    body, checksum = raw[: _BODY.size], raw[_BODY.size :]
    magic, version, header_bytes, total, layout_bytes, digest, run_id, write, pid, start = (
        _BODY.unpack(body)
    )
    if magic != MAGIC:
        raise ArenaError(
            f"no arena: it starts with {magic!r}, not {MAGIC!r}; either these bytes belong to "
            "another program, or their creator died before they were complete"
        )
    if (version, header_bytes) != (VERSION, HEADER_BYTES):
        raise ArenaError(
            f"the arena has format {version} with {header_bytes} header bytes, this mlxhog reads "
            f"format {VERSION} with {HEADER_BYTES}; attach with the version that created it"
        )
    if hashlib.sha256(body).digest() != checksum:
        raise ArenaError("the arena's header is corrupted: its checksum does not match")
    if len(data) < total:
        raise ArenaError(f"the arena is truncated: {len(data)} bytes of {total}")
    text = bytes(data[PAGE : PAGE + layout_bytes])
    if hashlib.sha256(text).digest() != digest:
        raise ArenaError("the arena's layout is corrupted: its digest does not match")
    header = Header(
        total_bytes=total,
        layout_bytes=layout_bytes,
        layout_sha256=digest,
        run_id=run_id.rstrip(b"\0").decode(errors="replace"),
        write=write.rstrip(b"\0").decode(errors="replace"),
        creator_pid=pid,
        creator_start_time=start,
    )
    layout = Layout.from_json(text.decode(errors="replace"))
    if layout.total_bytes != total:
        raise ArenaError(
            f"the arena's header says {total} bytes, its layout {layout.total_bytes}; "
            "it is corrupted"
        )
    return header, layout
