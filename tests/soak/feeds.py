"""Examples posted to a run that follows, through kills, full disks and bad files: none is lost.

Clients post examples, one each, to the server of a run, in parts. In some, trainer and server are
killed with SIGKILL and started again; in some, the disk of the run is full for a while. In the
folder that is followed stand a file whose name is not UTF-8, a pipe, a link to /dev/zero and files
of a few bytes that unpack to gigabytes; each part adds a good file.

In the end the run has trained on every example that was acknowledged: it stands in a segment, once,
or twice where it was posted again after no answer, and the checkpoint counts all tickets of all
segments as done. Of the examples that were refused none is kept, not even in part.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from mlxhog.arena.requests import ask
from mlxhog.base.durable import read_lines, replace_file
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint import run as runs
from mlxhog.data.stream import Stream
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import RunError
from tests.small_disk import filled, small_disk
from tests.soak import Counts
from tests.threads import in_threads, wait_until

CLIENTS = 8
EXAMPLES = 100  # of a part: more than fit into the last page of a file on a full disk
PARTS = ("calm", "kill", "full disk", "kill")
LIMIT_S = 300.0
STOP_S = 240.0
KILL_S = 0.3  # after a part of the posting begins
REFUSALS = 5  # that the disk stays full for
DISK_BYTES = 256 << 20
MEMORY_BYTES = 512 << 20  # that bad files may cost: of each, 64 MiB are read into rows
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
    "--seq-len=128", "--batch-size=8",
)  # fmt: skip


def feeds(n, say):
    """Examples posted to a run that follows: n full disks, and twice as many kills."""
    posts = Posts()
    with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as name:
        folder = Path(name)
        for inner in ("new", "runs"):
            (folder / inner).mkdir()
        with small_disk(folder / "runs", DISK_BYTES) as disk:
            return _fed(folder, posts, PARTS * n, disk, say)


def _fed(folder, posts, parts, disk, say):
    pair = Pair(folder)
    directory, before, memory = pair.run.directory, pair.peak_bytes(), 0
    plant(folder / "new")
    files = [f"file {part}" for part in range(len(parts))]
    try:
        for part, kind in enumerate(parts):
            numbers = range(EXAMPLES * part, EXAMPLES * (part + 1))
            replace_file(folder / "new" / f"{part}.txt", files[part].encode())
            memory = max(memory, pair.peak_bytes() - before)
            if kind == "kill":
                killer = threading.Timer(KILL_S, pair.kill)
                killer.start()
                posts.post(pair.url, numbers)
                killer.join()
                pair = Pair(folder)
            elif kind == "full disk" and disk:
                with posts.refused_by(directory.parent):
                    posts.post(pair.url, numbers)
            else:
                posts.post(pair.url, numbers)
            # As a client does that had no answer.
            posts.post(pair.url, [k for k in numbers if k not in posts.acknowledged])
            say(f"{kind}: {len(posts.acknowledged)} acknowledged, {len(posts.refused)} refused")
        wanted = {*posts.acknowledged.values(), *files}
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            time.sleep(1.0)
            if wanted <= set(published(directory)[0]) and not unnamed(directory):
                ask(directory, "checkpoint", timeout_s=LIMIT_S)
                if trained(directory) == published(directory)[1]:
                    break
        memory = max(memory, pair.peak_bytes() - before)
        ends = pair.stop()
    finally:
        pair.kill()
    (rows, tickets), counts, n = published(directory), Counts(), len(wanted)
    lost = len(wanted - set(rows))
    lines = (directory / "stream" / "examples.jsonl").read_text().splitlines()
    kept = {"{prompt}{answer}".format(**json.loads(line)) for line in lines} | set(rows)
    times = Counter(row.partition(",")[0] for row in rows)
    often = Counter(times[f"say number {k}"] for k in posts.acknowledged)
    others = sum(found for k, found in often.items() if k not in (1, 2))
    unposted = EXAMPLES * len(parts) - len(posts.acknowledged)
    for name, value, trials in (
        ("examples posted and not acknowledged in the end", unposted, EXAMPLES * len(parts)),
        ("acknowledged examples and good files that are in no segment", lost, n),
        ("acknowledged examples not trained once or twice", others, n),
        ("tickets of the stream that were not trained", tickets - trained(directory), tickets),
        ("refused examples that are kept", len(posts.refused & kept), len(posts.refused)),
        ("bad files that were not named", len(unnamed(directory)), len(BAD)),
        ("bad files that cost more than 512 MiB together", memory > MEMORY_BYTES, 0),
        ("runs that follow and do not end when asked", not ends, 0),
        ("full disks that refused no example", disk and not posts.refused, 0),
    ):
        counts.never(name, value, trials)
    counts.facts["examples"] = {
        "acknowledged": len(posts.acknowledged), "once": often[1], "twice": often[2],
        "refused": len(posts.refused), "full_disk": disk, "bytes of bad files": memory,
    }  # fmt: skip
    return counts


class Pair:
    """A run that follows, and its server."""

    def __init__(self, folder):
        words = ("--resume", "latest") if runs.list_runs(folder / "runs") else ()
        self.training = _mlxhog(folder, "train", "--json", *TRAIN, *words)
        wait_until(lambda: self._lives() and runs.list_runs(folder / "runs"), LIMIT_S, "a run")
        (self.run,) = runs.list_runs(folder / "runs")
        wait_until(lambda: self._lives() and self._follows(), LIMIT_S, "it to follow", every_s=0.1)
        self.server = _mlxhog(folder, "serve", "latest", "--port", "0", "--json")
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
        status = Path(f"/proc/{self.training.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def _lives(self):
        assert self.training.poll() is None, "the run did not start"
        return True

    def _follows(self):
        try:
            ask(self.run.directory, "status", timeout_s=5.0)
        except RunError:
            return False
        return (self.run.directory / "stream" / "stream.json").exists()


def _mlxhog(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "mlxhog", *words], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


class Posts:
    """What clients have posted, and how it was answered.

    Attributes:
        acknowledged: number -> the text that was acknowledged.
        refused: texts that the server refused for want of room.
    """

    def __init__(self):
        self.acknowledged, self.refused = {}, set()
        self._tries, self._lock = 0, threading.Lock()

    def post(self, url, numbers):
        """Post an example per number with several clients at once; a refused one again."""
        rest = iter(numbers)

        def client(_):
            while True:
                with self._lock:
                    k = next(rest, None)
                if k is None:
                    return
                while self._is_refused(url, k):
                    time.sleep(0.01)

        in_threads(client, range(CLIENTS), LIMIT_S)

    def _is_refused(self, url, k):
        with self._lock:
            self._tries += 1
            answer = f" number {k}, try {self._tries}"
        body = json.dumps({"prompt": "say", "answer": answer}).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{url}/examples", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply, self._lock:
                if reply.status == 200:
                    self.acknowledged[k] = f"say{answer}"
        except urllib.error.HTTPError as error:
            if error.code == 507:
                with self._lock:
                    self.refused.add(f"say{answer}")
            return error.code == 507
        except OSError:
            pass  # no answer
        return False

    @contextmanager
    def refused_by(self, directory):
        """Fill a disk until some more posts are refused; posting continues in the block."""
        enough, over = len(self.refused) + REFUSALS, threading.Event()

        def wait_for_refusals():
            while len(self.refused) < enough and not over.wait(0.01):
                pass
            (directory / "filler").unlink(missing_ok=True)

        with filled(directory):
            waiting = threading.Thread(target=wait_for_refusals)
            waiting.start()
            yield
            over.set()
            waiting.join()


def plant(folder):
    """Put what is bad into the folder that is followed, each whole at once; see `BAD`."""
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("a name of another age")
    os.mkfifo(folder / "pipe.txt")
    os.symlink("/dev/zero", folder / "zeros.txt")
    # `follow` counts bytes of text alone: of one word a record, 64 MiB would be 6 GB of rows.
    text = b"words " * 200
    for kind, line in (("txt", text + b"\n"), ("jsonl", b'{"text": "%s"}\n' % text)):
        packed = gzip.compress(line * (1 << 14))
        replace_file(folder / f"bomb.{kind}.gz", packed * 100)


def unnamed(directory):
    """Which of the bad files the run has not named with their reason."""
    lines = read_lines(directory / "events.jsonl", 0, 1 << 24).splitlines()
    texts = [str(json.loads(line).get("text")) for line in lines]
    return {name for name, why in BAD.items() if not any(name in t and why in t for t in texts)}


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
