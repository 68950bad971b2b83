"""Serve a page on this machine that follows a run.

Only this machine can open it; from another one: ssh -L 8322:127.0.0.1:8322 HOST. The printed link
has a token for the page's buttons: save a checkpoint, write a sample, stop the run. Ctrl-C ends the
dashboard, not the run.

Examples:
    dashboard
    dashboard latest --port 8400
"""

import secrets
import sys
from dataclasses import dataclass

from mlxhog.base.http_server import listen, url_of
from mlxhog.cli.frame import CommandResult, OneRun, command, option, run_argument


@dataclass(frozen=True, kw_only=True)
class _Dashboard(OneRun):
    run: str = run_argument("[RUN]", "latest")
    port: int = option(8322, "port of the server; 0 takes a free one", low=0, high=65535)


@command(writes=True)
def run(config: _Dashboard) -> int:
    followed = config.find(config.run)
    with listen("127.0.0.1", config.port) as listener:
        from mlxhog.base.app_server import AppServer
        from mlxhog.display.dashboard import Dashboard
        from mlxhog.display.record import RunRecord

        token, address = secrets.token_urlsafe(16), f"{url_of(listener)}/"
        server = AppServer(Dashboard(RunRecord(followed), token))
        payload = {"url": address, "token": token, "run": str(followed.directory)}
        text = f"dashboard of {followed.directory}\n  {address}#{token}"
        CommandResult(payload, text).print(json=config.json)
        server.run(sockets=[listener])
    print("the dashboard has ended; the run is unaffected", file=sys.stderr)
    return 0
