"""One machine of a race, or of a synchronous training's traffic; the last line is a JSON object.

    python -m cluster.member '{"bits": 1.8, "val_subset_tokens": 65536, "options": {"time": 60}}'
    python -m cluster.member '{"address": "10.77.0.1", "rank": 0, "machines": 2, "floats": 1000,
                               "times": 20}'

The first trains with a recorder, and prints when its validation loss fell so far. The second
averages a buffer by all-reduces of Gloo, without any gradient, and prints the seconds of one.
`cluster/races.py` starts both in a namespace of their own.
"""

import json
import math
import os
import sys
import time


def raced(bits, val_subset_tokens, options):
    """The machine's part of an `Outcome`."""
    from training.recording import BYTES, HeldOut, record

    run = record(keep_params=True, **options)
    validation = HeldOut(BYTES, val_subset_tokens)
    seconds, tokens = validation.crossing(run.points, bits) or (math.inf, math.inf)
    rounds, committed = run.cluster.get("rounds", 0), run.cluster.get("tokens_committed", 0)
    return {
        "seconds": seconds, "tokens": tokens, "trained_s": run.result.seconds,
        "last_bits": validation.bits_per_byte(run.points[-1].params),
        "lost": run.cluster.get("tokens_lost", 0), "round_tokens": committed / max(1, rounds),
    }  # fmt: skip


def reduced(address, rank, machines, floats, times):
    """Seconds of an all-reduce."""
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "cable"
    store = f"tcp://{address}:8601"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=machines)
    buffer = torch.ones(floats)
    dist.all_reduce(buffer)  # connects
    began = time.monotonic()
    for _ in range(times):
        dist.all_reduce(buffer)
    seconds = (time.monotonic() - began) / times
    dist.destroy_process_group()
    return {"seconds": seconds}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps((raced if "bits" in asked else reduced)(**asked)), flush=True)
