"""One machine of a synchronous training's traffic: all-reduces of Gloo, without any gradient.

    python -m cluster.all_reduce ADDRESS RANK MACHINES FLOATS TIMES

Prints a JSON object with the seconds of one all-reduce.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist


def main():
    """Join, and average a buffer some times."""
    address, *numbers = sys.argv[1:]
    rank, machines, floats, times = map(int, numbers)
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
    print(json.dumps({"seconds": seconds}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
