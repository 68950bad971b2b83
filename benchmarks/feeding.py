"""Examples posted to a run that follows, through kills, full disks and bad files: none is lost.

    python benchmarks/feeding.py                      10,000 examples, some minutes
    python benchmarks/feeding.py --examples 2000      what all.py --full runs

Clients post examples, one each, to the server of a run, in four parts. In the second and the last,
trainer and server are killed with SIGKILL and started again; in the third, the disk of the run is
full for a while. In the folder that is followed stand a file whose name is not UTF-8, a pipe, a
link to /dev/zero and files of a few bytes that unpack to gigabytes; each part adds a good file.

In the end the run has trained on every example that was acknowledged: it stands in a segment, once,
or twice where it was posted again after no answer, and the checkpoint counts all tickets of all
segments as done. Of the examples that were refused none is kept, not even in part.
"""

import gzip
import json
import os
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.frame import run
from harness.interleaved import mlxhog
from harness.machine import resident, smallest
from training.faults import filled

from mlxhog.arena.requests import ask
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint import run as runs
from mlxhog.data.stream import Stream
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import RunError
from tests.small_disk import small_disk

CLIENTS = 8
LIMIT_S = 300.0
STOP_S = 60.0
KILL_S = 0.3  # after a part of the posting begins
REFUSALS = 20  # that the disk stays full for
PARTS = ("calm", "kill", "full disk", "kill")
DISK_BYTES = 256 << 20
MEMORY_BYTES = 512 << 20  # that bad files may cost: of each, at most 256 MiB are read
BAD = {
    "caf\\xe9.txt": "its name is not UTF-8",
    "pipe.txt": "is no regular file",
    "zeros.txt": "is no regular file",
    "bomb.txt.gz": "more than",
    "bomb.jsonl.gz": "more than",
}
"""What stands in the folder that is followed, as it is named, and the reason."""
TRAIN = (
    "--model=tiny", "--tokenizer=bytes", "--workers=mlx:cpu,torch:cpu", "--follow=new",
    "--seq-len=64", "--batch-size=8",
)  # fmt: skip


class Pair:
    """A run that follows, and its server."""

    def __init__(self, folder):
        self.folder = folder
        existing = runs.list_runs(folder / "runs")
        words = ("--resume", "latest") if existing else ()
        self.training = mlxhog(folder, "train", "--json", *TRAIN, *words)
        self._wait(lambda: bool(runs.list_runs(folder / "runs")))
        (self.run,) = runs.list_runs(folder / "runs")
        self._wait(self._follows)
        self.server = mlxhog(folder, "serve", "latest", "--port", "0", "--json")
        self.url = json.loads(self.server.stdout.readline())["url"]

    def kill(self):
        """End both at once."""
        for process in (self.server, self.training):
            process.kill()
            process.communicate()

    def stop(self):
        """Ask the run to end; returns whether it does."""
        ask(self.run.directory, "stop")
        try:
            self.training.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def peak_bytes(self):
        """The most memory that the trainer's own process has had."""
        return resident(self.training.pid)[1]

    def _follows(self):
        try:
            ask(self.run.directory, "status", timeout_s=5.0)
        except RunError:
            return False
        return (self.run.directory / "stream" / "stream.json").exists()

    def _wait(self, condition):
        end = time.monotonic() + LIMIT_S
        while not condition():
            if self.training.poll() is not None or time.monotonic() > end:
                raise SystemExit("the run did not start")
            time.sleep(0.1)


@dataclass
class Posted:
    """What clients have posted, and how it was answered.

    Attributes:
        acknowledged: number -> the text that was acknowledged.
        refused: texts that the server refused for want of room.
        tries: posts so far; each has another text.
    """

    acknowledged: dict[int, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    tries: int = 0


def post(pair, numbers, posted):
    """Post an example per number with several clients at once; note the answers."""
    rest, lock = iter(numbers), threading.Lock()

    def client():
        while True:
            with lock:
                k = next(rest, None)
            if k is None:
                return
            while _refused(k):
                time.sleep(0.01)

    def _refused(k):
        """Post one example; whether the server has refused it."""
        with lock:
            posted.tries += 1
            answer = f" number {k}, try {posted.tries}"
        body = json.dumps({"prompt": "say", "answer": answer}).encode()
        request = urllib.request.Request(
            f"{pair.url}/examples", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply, lock:
                if reply.status == 200:
                    posted.acknowledged[k] = f"say{answer}"
        except urllib.error.HTTPError as error:
            if error.code == 507:
                with lock:
                    posted.refused.add(f"say{answer}")
            return error.code == 507
        except OSError:
            pass  # no answer
        return False

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def plant(folder):
    """Put what is bad into the folder that is followed; see `BAD`."""
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("a name of another age")
    os.mkfifo(folder / "pipe.txt")
    os.symlink("/dev/zero", folder / "zeros.txt")
    for kind, line in (("txt", b"words and words\n"), ("jsonl", b'{"text": "word"}\n')):
        (folder / f"bomb.{kind}.gz").write_bytes(gzip.compress(line * (1 << 20)) * 100)


def unnamed(directory):
    """Which of the bad files the run has not named with their reason."""
    events = directory / "events.jsonl"
    texts = [str(json.loads(line).get("text")) for line in events.read_text().splitlines()]
    return {name for name, why in BAD.items() if not any(name in t and why in t for t in texts)}


@contextmanager
def full(directory, posted):
    """Fill the disk of a run until some posts are refused; posting continues in the block."""
    with filled(directory.parent):
        waiting = threading.Thread(target=_wait_for_refusals, args=(posted, directory.parent))
        waiting.start()
        yield
    waiting.join()


def _wait_for_refusals(posted, directory):
    end = time.monotonic() + LIMIT_S
    while len(posted.refused) < smallest(0, REFUSALS) and time.monotonic() < end:
        time.sleep(0.01)
    (directory / "filler").unlink(missing_ok=True)


def published(directory):
    """The text of every row of the stream, and the number of its tickets."""
    stream = Stream(directory / "stream").update()
    rows = [
        bytes(ByteTokenizer().decode(row.ids)).decode()
        for ticket in range(stream.last.end_ticket)
        for row in stream.rows(ticket)
    ]
    return rows, stream.last.end_ticket


def trained(directory):
    """Tickets that the newest checkpoint counts as trained."""
    _, path = checkpoint.resumable(str(directory), directory.parent)
    position = checkpoint.load(path).state["ledgers"]["stream"]
    return int(position["epoch"] * position["n"] + position["watermark"] + len(position["done"]))


def measure(findings, chosen):
    """Post a number of examples through all that may happen, and count."""
    count = smallest(40, chosen.examples)
    posted, files = Posted(), [f"file {k}" for k in range(len(PARTS))]
    with tempfile.TemporaryDirectory() as name, small_disk(_runs(Path(name)), DISK_BYTES) as disk:
        folder = Path(name)
        (folder / "new").mkdir()
        pair, seconds = Pair(folder), 0.0
        directory, before, memory = pair.run.directory, pair.peak_bytes(), 0
        plant(folder / "new")
        try:
            for part, kind in enumerate(PARTS):
                numbers = range(count * part // len(PARTS), count * (part + 1) // len(PARTS))
                (folder / "new" / f"{part}.txt").write_text(files[part])
                began, memory = time.perf_counter(), max(memory, pair.peak_bytes() - before)
                if kind == "kill":
                    killer = threading.Timer(KILL_S, pair.kill)
                    killer.start()
                    post(pair, numbers, posted)
                    killer.join()
                    pair = Pair(folder)
                elif kind == "full disk" and disk:
                    with full(directory, posted):
                        post(pair, numbers, posted)
                else:
                    post(pair, numbers, posted)
                    seconds = seconds or time.perf_counter() - began
                # As a client does that had no answer.
                post(pair, [k for k in numbers if k not in posted.acknowledged], posted)
            wanted = {*posted.acknowledged.values(), *files}
            end = time.monotonic() + LIMIT_S
            while time.monotonic() < end:
                time.sleep(2.0)
                if wanted <= set(published(directory)[0]) and not unnamed(directory):
                    ask(directory, "checkpoint")
                    if trained(directory) == published(directory)[1]:
                        break
            memory = max(memory, pair.peak_bytes() - before)
            ends = pair.stop()
        finally:
            pair.kill()
        rows, tickets = published(directory)
        lines = (directory / "stream" / "examples.jsonl").read_text().splitlines()
        kept = {"{prompt}{answer}".format(**json.loads(line)) for line in lines}
        times = Counter(row.partition(",")[0] for row in rows)
        counts = Counter(times[f"say number {k}"] for k in posted.acknowledged)
        findings.results["examples"] = {
            "acknowledged": len(posted.acknowledged),
            "a second": count // len(PARTS) / seconds,
            "once": counts[1],
            "twice": counts[2],
            "refused": len(posted.refused),
            "full_disk": disk,
        }
        lost, n = len(wanted - set(rows)), len(wanted)
        others = sum(times for k, times in counts.items() if k not in (1, 2))
        unposted, kept_ones = count - len(posted.acknowledged), posted.refused & (kept | set(rows))
        for name, value, trials in (
            ("examples posted and not acknowledged in the end", unposted, None),
            ("acknowledged examples and good files that are in no segment", lost, n),
            ("acknowledged examples not trained once or twice", others, n),
            ("tickets of the stream that were not trained", tickets - trained(directory), tickets),
            ("refused examples that are kept", len(kept_ones), None),
            ("bad files that were not named", len(unnamed(directory)), None),
            ("runs that follow and do not end when asked", int(not ends), None),
        ):
            findings.exact(name, value, 0, n=trials)
        if disk:
            findings.at_least("posts refused by a full disk", len(posted.refused), 1, timing=False)
        findings.at_most("bytes that bad files cost", memory, MEMORY_BYTES, timing=False)


def _runs(folder):
    (folder / "runs").mkdir()
    return folder / "runs"


if __name__ == "__main__":
    options = {"--examples": {"type": int, "default": 10_000}}
    run(__doc__, measure, modes={}, options=options, packages=("torch", "starlette", "uvicorn"))
