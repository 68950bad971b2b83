"""The simulation behaves as macOS does, so that passing in it says something."""

import pytest

from tests.macos.simulation import linux_only, simulated

pytestmark = linux_only

TOOLS = """
import errno, mmap, os, socket, sys, _posixshmem
def shm(name):
    fd = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
    _posixshmem.shm_unlink(name)
    return fd
def second_size():
    fd = shm("/a")
    os.ftruncate(fd, 9)
    return error(os.ftruncate, fd, 9)
def error(call, *arguments):
    try:
        call(*arguments)
    except OSError as found:
        return errno.errorcode[found.errno]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fact", "code", "printed"),
    [
        ("a long name", "print(error(shm, '/' + 30 * 'x'), error(shm, '/' + 31 * 'x'))",
         "None ENAMETOOLONG"),
        ("a flag that shm_open refuses",
         "print(error(_posixshmem.shm_open, '/a', os.O_CREAT | os.O_RDWR | os.O_CLOEXEC))",
         "EINVAL"),
        ("no limit of memory",
         "import resource; limit = resource.RLIMIT_AS\n"
         "try: resource.setrlimit(limit, resource.getrlimit(limit))\n"
         "except (OSError, ValueError) as refusal: print('no')", "no"),
        ("one size for ever", "print(second_size())",
         "EINVAL"),
        ("whole pages, no regular file",
         "fd = shm('/a'); os.ftruncate(fd, 9); s = os.fstat(fd); print(s.st_size, s.st_mode >> 12)",
         "16384 0"),
        ("no /proc", "print(error(open, '/proc/self/stat'), os.path.exists('/proc'))",
         "ENOENT False"),
        ("no /dev/shm", "print(error(os.statvfs, '/dev/shm'), error(os.listdir, '/dev/shm'))",
         "ENOENT ENOENT"),
        ("no fallocate, no affinity",
         "print([n for n in ('posix_fallocate', 'sched_getaffinity', 'memfd_create', 'eventfd')"
         " if hasattr(os, n)])", "[]"),
        ("other peer credentials", "a, _ = socket.socketpair();"
         "print(hasattr(socket, 'SO_PEERCRED'),"
         "error(a.getsockopt, socket.SOL_SOCKET, 17, 12), a.getsockopt(0, 1, 76)[4:8] =="
         "os.getuid().to_bytes(4, sys.byteorder))", "False ENOPROTOOPT True"),
        ("socket paths of 103 bytes",
         "s = socket.socket(socket.AF_UNIX); print(error(s.bind, '/tmp/' + 99 * 'x'))", "EINVAL"),
        ("arrays of MLX in Metal's memory, which native code refuses",
         "import mlx.core as mx, numpy as np; from mlxhog._native import sumsq; x = mx.ones(3)\n"
         "try: sumsq(x)\nexcept TypeError: print('no', end=' ')\n"
         "print(x.__dlpack_device__(), sumsq(np.array(x, copy=False)))",
         "no (8, 0) 3.0"),
        ("a GPU that facts are asked of by its name, beside a default device of the process",
         "import os; os.environ['FAKE_METAL'] = '1'; import mlx.core as mx\n"
         "size = 'max_recommended_working_set_size'\n"
         "with mx.stream(mx.cpu): print(size in mx.device_info(), size in mx.device_info(mx.gpu))\n"
         "print(size in mx.device_info(), size in mx.device_info(mx.cpu))",
         "False True\nTrue False"),
        ("tensors of a GPU, copies that no operation joins with the host's",
         "import os; os.environ['FAKE_METAL'] = '1'; import numpy as np, torch\n"
         "host = np.ones(3, np.float32); x = torch.from_numpy(host).to('mps'); host[:] = 5\n"
         "def refused(call, *arguments):\n"
         "    try: call(*arguments)\n"
         "    except (RuntimeError, TypeError): return True\n"
         "print(x.device, (x * 2 + torch.tensor(1.0)).cpu().numpy(),"
         "refused(torch.add, x, torch.ones(3)), refused((2 * x).numpy),"
         "torch.zeros(1, device=x.device).device)", "mps [3. 3. 3.] True True mps"),
        ("a cache of the drive that every mapping of a file flushes",
         "mmap.mmap(-1, 9); mmap.mmap(os.open(sys.executable, 0), 9, access=mmap.ACCESS_READ);"
         "print(mmap.mmap.flushes)", "1"),
        ("pages of 16 KiB", "print(sys.platform, mmap.PAGESIZE)", "darwin 16384"),
    ],
)  # fmt: skip
def test_the_simulation_has(fact, code, printed):
    assert simulated(TOOLS + code).strip() == printed


def test_a_sandboxed_app_may_use_only_names_of_its_group():
    code = "print(error(shm, '/mh-1'), error(shm, 'A1.group/mh-1'))"
    printed = simulated(TOOLS + code, FAKE_SANDBOX_GROUP="A1.group/").split()
    assert printed[0] == "EPERM"
    assert printed[1] != "EPERM"
