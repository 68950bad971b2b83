"""How fast workers proceed while they share a machine's cores and its memory bandwidth."""

from __future__ import annotations

from collections.abc import Sequence


def fair_shares(demands: Sequence[float], capacity: float) -> list[float]:
    """Divide a capacity: no one gets more than it asks for, and who asks for more gets the same.

    Source: max-min fairness, Bertsekas and Gallager, Data Networks, section 6.5.
    """
    shares = [0.0] * len(demands)
    left, waiting = capacity, len(demands)
    for k in sorted(range(len(demands)), key=demands.__getitem__):
        shares[k] = min(demands[k], left / waiting)
        left -= shares[k]
        waiting -= 1
    return shares


def speeds(
    on_core: Sequence[bool],
    traffic: Sequence[float],
    *,
    cores: int | None,
    bandwidth: float | None,
) -> list[float]:
    """Speed of each active worker, 1 where it runs as if alone.

    Cores are divided evenly by the operating system; a worker slowed by that asks for less memory
    traffic, and is slowed again where its fair share of the bandwidth is less than it asks for.

    Args:
        on_core: whether a worker's present phase needs a core of the CPU.
        traffic: bytes per second it moves at full speed.
        cores: of the machine; None for as many as there are workers.
        bandwidth: of the memory in bytes per second; None for no limit.
    """
    busy = sum(on_core)
    slow = 1.0 if cores is None or busy <= cores else cores / busy
    speed = [slow if needs else 1.0 for needs in on_core]
    if bandwidth is None:
        return speed
    wanted = [bytes_per_s * s for bytes_per_s, s in zip(traffic, speed, strict=True)]
    if sum(wanted) <= bandwidth:
        return speed
    given = fair_shares(wanted, bandwidth)
    return [
        s * got / asked if asked else s for s, got, asked in zip(speed, given, wanted, strict=True)
    ]
