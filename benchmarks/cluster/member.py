"""One machine of a race: it trains with a recorder, and prints when its held-out loss fell so far.

    python -m cluster.member '{"bits": 1.8, "eval_tokens": 65536, "options": {"time": 60}}'

`across_machines.py` starts it in a namespace of its own. The last line is a JSON object.
"""

import json
import math
import sys

from training.recording import BYTES, HeldOut, record


def main():
    """Train, evaluate and print."""
    asked = json.loads(sys.argv[1])
    run = record(keep_params=True, **asked["options"])
    held_out = HeldOut(BYTES, asked["eval_tokens"])
    crossing, last = held_out.crossing(run.points, asked["bits"]), run.points[-1].params
    assert last is not None, "the parameters are kept"
    reached_s, reached_tokens = crossing or (math.inf, math.inf)
    answer = {
        "reached": crossing is not None,
        "seconds": reached_s if crossing else None,
        "tokens": reached_tokens if crossing else None,
        "last_bits": held_out.bits_per_byte(last),
        "trained_s": run.result.seconds,
        "trained_tokens": run.result.tokens,
        "rounds": run.cluster.get("rounds", 0),
        "committed": run.cluster.get("tokens_committed", 0),
        "lost": run.cluster.get("tokens_lost", 0),
    }
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
