"""`mlxhog board`: a page on this machine that follows a run."""

import asyncio
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from mlxhog.base.http_server import listen, say_once_where_connections_wait, url_of
from mlxhog.cli.flags import RunFolder, run_argument
from mlxhog.cli.frame import command, print_json
from mlxhog.config.options import option, switch

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

    run: str = run_argument("[RUN]", "latest")
    json: bool = switch("print address and token as JSON")
    port: int = option(8322, "port of the server; 0 takes a free one", low=0, high=65535)


@command("board", ABOUT, EXAMPLES, BoardConfig)
def run(config: BoardConfig) -> int:
    """Serve the page until a signal."""
    from mlxhog.checkpoint.run import find

    followed = find(config.run, Path(config.out))
    with listen(HOST, config.port) as listener:
        import uvicorn

        from mlxhog.report.board import Board
        from mlxhog.report.record import RunRecord

        token = secrets.token_urlsafe(16)
        address = f"{url_of(listener)}/"
        settings = uvicorn.Config(
            Board(RunRecord(followed), token).app,
            log_level="critical",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=1 << 16,
        )
        if config.json:
            print_json({"url": address, "token": token, "run": str(followed.directory)})
        else:
            print(f"board of {followed.directory}\n  {address}#{token}", flush=True)

        async def answer() -> None:
            say_once_where_connections_wait()
            await uvicorn.Server(settings).serve(sockets=[listener])

        try:
            asyncio.run(answer())
        except KeyboardInterrupt:
            pass
    print("the board has ended; it changed nothing in the run", file=sys.stderr)
    return 0
