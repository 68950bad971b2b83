"""`mlxhog board`: a page on this machine that follows a run."""

import asyncio
import json
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from mlxhog.base.http_server import listen, say_once_where_connections_wait, url_of
from mlxhog.cli.flags import RUN_HELP, Flags, RunFolder
from mlxhog.config.options import option

ABOUT = """\
Serve a page that follows a run: curves over time, samples and updates, staleness, workers, samples
of text, messages. All its parts come from this machine, and only this machine can open it; from
another one: ssh -L 8322:127.0.0.1:8322 HOST. The printed link has a token for the page's buttons:
save a checkpoint, write a sample, stop the run. Ctrl-C ends the board, not the run."""
EXAMPLES = ("board", "board latest --port 8400", "board runs/20260102-101500-sotu")
HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class BoardConfig(RunFolder):
    """Options of `mlxhog board`."""

    port: int = option(8322, "port of the server; 0 takes a free one", low=0, high=65535)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("board", ABOUT, EXAMPLES, ("[RUN]",))
    flags.argument("run", metavar="RUN", nargs="?", default="latest", help=RUN_HELP)
    flags.argument("--json", action="store_true", help="print address and token as JSON")
    parsed, config = flags.read(BoardConfig, arguments)
    from mlxhog.checkpoint.run import find

    followed = find(parsed.other.run, Path(config.out))
    listener = listen(HOST, config.port)
    with listener:
        import uvicorn

        from mlxhog.report.board import Board
        from mlxhog.report.record import RunRecord

        token = secrets.token_urlsafe(16)
        address = f"{url_of(listener)}/"
        board = Board(RunRecord(followed), token)
        server = uvicorn.Server(
            uvicorn.Config(
                board.app,
                log_level="critical",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
                h11_max_incomplete_event_size=1 << 16,
            )
        )
        if parsed.other.json:
            print(json.dumps({"url": address, "token": token, "run": str(followed.directory)}))
        else:
            print(f"board of {followed.directory}\n  {address}#{token}")
        sys.stdout.flush()

        async def answer() -> None:
            say_once_where_connections_wait()
            await server.serve(sockets=[listener])

        try:
            asyncio.run(answer())
        except KeyboardInterrupt:
            pass
    print("the board has ended; it changed nothing in the run", file=sys.stderr)
    return 0
