"""Examples posted to a run that follows, while trainer and server are killed: none is lost.

    python benchmarks/feeding.py                      10,000 examples, some minutes
    python benchmarks/feeding.py --quick              500

Clients post examples, one each, to the server of a run. After each third, trainer and server are
killed with SIGKILL and started again. In the end the run has trained on every example that was
acknowledged: it stands in a segment, and the checkpoint counts all tickets of all segments as done.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.claims import Findings, flags, measured
from serving import mlxhog

from mlxhog.arena.requests import ask
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint import run as runs
from mlxhog.data.stream import Segment
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import RunError

CLIENTS = 8
LIMIT_S = 300.0
KILL_S = 0.3  # after a third of the posting begins
TRAIN = (
    "--workers",
    "mlx:cpu,torch:cpu",
    "--follow",
    "new",
    "--seq-len",
    "64",
    "--batch-size",
    "8",
)


class Pair:
    """A run that follows, and its server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        existing = runs.list_runs(folder / "runs")
        words = ("--resume", "latest") if existing else ()
        self.training = mlxhog(folder, "train", "--json", *TRAIN, *words)
        self._wait(lambda: bool(runs.list_runs(folder / "runs")))
        (self.run,) = runs.list_runs(folder / "runs")
        self._wait(self._follows)
        self.server = mlxhog(folder, "serve", "latest", "--port", "0", "--json")
        assert self.server.stdout is not None
        self.url = json.loads(self.server.stdout.readline())["url"]

    def kill(self) -> None:
        """End both at once."""
        for process in (self.server, self.training):
            process.kill()
            process.communicate()

    def _follows(self) -> bool:
        try:
            ask(self.run.directory, "status", timeout_s=5.0)
        except RunError:
            return False
        return (self.run.directory / "stream" / "stream.json").exists()

    def _wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            if self.training.poll() is not None or time.monotonic() > end:
                raise SystemExit("the run did not start")
            time.sleep(0.1)


def post(pair: Pair, numbers: Sequence[int], acknowledged: set[str]) -> None:
    """Post an example per number with several clients at once; note those that were answered."""
    rest, lock = iter(numbers), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                k = next(rest, None)
            if k is None:
                return
            text = f"say number {k}"
            body = json.dumps({"prompt": "say", "answer": f" number {k}"}).encode()
            request = urllib.request.Request(
                f"{pair.url}/examples", body, {"content-type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    if reply.status == 200:
                        with lock:
                            acknowledged.add(text)
            except (OSError, urllib.error.URLError):
                continue  # it was not acknowledged

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def published(directory: Path) -> tuple[list[str], int]:
    """The text of every row of the stream, and the number of its tickets."""
    rows: list[str] = []
    number, tickets = 1, 0
    while segment := Segment.read(directory / "stream", number, verify=True):
        at = 0
        for n, _ in segment.rows:
            ids = segment.tokens[at : at + n].astype("int32")
            rows.append(bytes(ByteTokenizer().decode(ids)).decode())
            at += int(n)
        number, tickets = number + 1, segment.end_ticket
    return rows, tickets


def trained(directory: Path) -> int:
    """Tickets that the newest checkpoint counts as trained."""
    _, path = checkpoint.resumable(str(directory), directory.parent)
    position = checkpoint.load(path).state["ledgers"]["stream"]
    return int(position["epoch"] * position["n"] + position["watermark"] + len(position["done"]))


def measure(findings: Findings, count: int) -> None:
    """Post so many examples, kill twice meanwhile, and count."""
    acknowledged: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "new").mkdir()
        pair, seconds = Pair(folder), 0.0
        try:
            for part in range(3):
                first, last = count * part // 3, count * (part + 1) // 3
                killer = threading.Timer(KILL_S, pair.kill) if part else None
                began = time.perf_counter()
                if killer is not None:
                    killer.start()
                post(pair, range(first, last), acknowledged)
                if killer is None:
                    seconds = time.perf_counter() - began
                else:
                    killer.join()
                    pair = Pair(folder)
                    numbers = range(first, last)  # as a client does that had no answer
                    again = [k for k in numbers if f"say number {k}" not in acknowledged]
                    post(pair, again, acknowledged)
            directory = pair.run.directory
            end = time.monotonic() + LIMIT_S
            while time.monotonic() < end:
                time.sleep(2.0)
                if acknowledged <= set(published(directory)[0]):
                    ask(directory, "checkpoint")
                    if trained(directory) == published(directory)[1]:
                        break
        finally:
            pair.kill()
        rows, tickets = published(directory)
        lost = len(acknowledged - set(rows))
        twice = len(rows) - len(set(rows))
        print(
            f"{len(acknowledged)} of {count} acknowledged, {count // 3 / seconds:,.0f} a second; "
            f"{len(rows)} rows, {twice} posted again without an answer"
        )
        findings.results["examples"] = {"acknowledged": len(acknowledged), "twice": twice}
        findings.exact(
            "examples posted and not acknowledged in the end", count - len(acknowledged), 0
        )
        findings.exact("acknowledged examples that are in no segment", lost, 0)
        findings.exact(
            "tickets of the stream that were not trained", tickets - trained(directory), 0
        )


def main() -> int:
    """Measure, and print the claims."""
    count = 500 if flags(__doc__, quick="500 examples").parse_args().quick else 10_000
    return measured(
        "feeding",
        lambda findings: measure(findings, count),
        packages=("mlxhog", "numpy", "torch", "starlette", "uvicorn"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
