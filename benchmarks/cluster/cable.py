"""Machines on this one: network namespaces, joined by a cable as slow as a link.

    with Cable(Link.parse("100Mbit:50ms"), machines=2) as cable:
        one = cable.popen(0, ["mlxhog", "cluster", "start", "--address", "10.77.0.1:8600"])
        cable.unplug(1)          # packets are dropped, as with a pulled cable
        cable.plug(1)
        cable.sent               # bytes of each machine, with their headers

Members of a Gloo group connect to each other by their own addresses, which no TCP proxy sees.
So each machine has a TUN device, and this process passes
its packets on: a packet leaves when those before it have left, arrives a delay later, and is
dropped if its sender has `BUFFER_S` of packets waiting, as in a router. Linux with
`CAP_NET_ADMIN` (root, or `unshare -Urn`), and the programs ip and nsenter.
"""

import asyncio
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mlxhog.errors import EnvironmentLacks
from mlxhog.research.simulator.links import Link

TUN = Path("/dev/net/tun")
CLONE_NEWNET, TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x40000000, 0x400454CA, 1, 0x1000
MTU = 9000
"""Jumbo frames: 1,400 packets/s at 100 Mbit/s, which cost this process some percent of a core."""
BUFFER_S = 0.2
VERSION_4 = 4


def lacking():
    """Why this machine can have no cable; None if it can."""
    if not sys.platform.startswith("linux") or not os.access(TUN, os.R_OK | os.W_OK):
        return f"network namespaces with a TUN device need Linux and access to {TUN}"
    lacks = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    if lacks:
        return f"no program {lacks[0]}: sudo apt install iproute2 util-linux"
    with ThreadPoolExecutor(1) as thread:  # whose namespace ends with it
        if thread.submit(_unshare).result():
            return "this user may not create network namespaces: use unshare -Urn, or root"
    return None


@dataclass
class Direction:
    """One direction of a cable: when bytes leave, and how many have.

    Attributes:
        link: rate and delay.
        sent: bytes that have left.
        free_at_s: time at which the last byte will have left.
    """

    link: Link
    sent: int = 0
    free_at_s: float = 0.0

    def departs(self, n_bytes, now_s):
        """Take the cable for some bytes; returns the time at which the last has left."""
        self.free_at_s = max(now_s, self.free_at_s) + n_bytes / self.link.bytes_per_s
        self.sent += n_bytes
        return self.free_at_s


class Cable:
    """Machines in a star, each on one link; a context."""

    def __init__(self, link, machines):
        """Plan it.

        Raises:
            EnvironmentLacks: this machine can have none.
        """
        if (why := lacking()) is not None:
            raise EnvironmentLacks(why)
        self._link, self._ways = link, [Direction(link) for _ in range(machines)]
        self._away, self._tuns, self._nets = set(), [], []
        self._loop = asyncio.new_event_loop()
        self._relay = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        """Create the namespaces, and pass packets on."""
        for machine in range(len(self._ways)):
            with ThreadPoolExecutor(1) as thread:
                tun, net = thread.submit(_namespace, self.address(machine)).result()
            self._tuns.append(tun)
            self._nets.append(net)
            self._loop.add_reader(tun, self._pass_on, machine)
        self._relay.start()
        return self

    def __exit__(self, *error):
        """Remove them; processes in them lose their network."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._relay.join()
        self._loop.close()
        for descriptor in (*self._tuns, *self._nets):
            os.close(descriptor)

    def address(self, machine):
        """The address of a machine."""
        return f"10.77.0.{machine + 1}"

    def popen(self, machine, command, **more):
        """Start a command on a machine, in a session of its own."""
        net = self._nets[machine]
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/self/fd/{net}", "--", *command],
            pass_fds=(net,), start_new_session=True, text=True, **more,
        )  # fmt: skip

    @property
    def sent(self):
        """Bytes that left each machine."""
        return tuple(way.sent for way in self._ways)

    def unplug(self, machine):
        """Drop the packets of a machine from now on."""
        self._away.add(machine)

    def plug(self, machine):
        """Pass them on again."""
        self._away.discard(machine)

    def _pass_on(self, machine):
        packet = os.read(self._tuns[machine], 1 << 16)
        receiver = packet[19] - 1 if packet[0] >> 4 == VERSION_4 else -1
        way, now_s = self._ways[machine], self._loop.time()
        if not 0 <= receiver < len(self._ways) or way.free_at_s - now_s > BUFFER_S:
            return
        if self._away & {machine, receiver}:
            return
        arrives_s = way.departs(len(packet), now_s) + self._link.latency_s
        self._loop.call_at(arrives_s, self._arrive, receiver, packet)

    def _arrive(self, receiver, packet):
        if receiver not in self._away:
            os.write(self._tuns[receiver], packet)


def _unshare():
    """Give this thread a network namespace of its own; returns an error code, 0 for none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.unshare(CLONE_NEWNET) else 0


def _namespace(address):
    """Open a TUN device in a namespace of this thread; returns its descriptor and the namespace's.

    Raises:
        EnvironmentLacks: the system refuses.
    """
    if code := _unshare():
        raise EnvironmentLacks(f"a network namespace is refused: {os.strerror(code)}")
    tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"cable", IFF_TUN | IFF_NO_PI))
    steps = "link set lo up", f"address add {address}/24 dev cable", f"link set cable mtu {MTU} up"
    for words in steps:
        subprocess.run(["ip", *words.split()], check=True, stdin=subprocess.DEVNULL)
    return tun, os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
