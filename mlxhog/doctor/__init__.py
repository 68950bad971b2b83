"""`mlxhog doctor`: measures the abilities of this machine.

checks.py      `Check`; checks of the machine, the versions and shared memory
backends.py    a gradient of every backend beside the reference; its speed, and its bits on a GPU
kernels.py     every Metal kernel on every Metal engine of an Apple GPU
litmus.py      two writers at once: lost and torn values, speed; a reader beside a writer
pair.py        runs with both engines of a GPU, and with one of them
system.py      more facts, for a report: macOS, Python, memory, power
report.py      the file of --report: record, facts, speeds, a default training with its logs
record.py      runs all checks into one record; consequences for --workers, --gpu-write and
               --read; the tables

Only `probes_mlx.py` and `probes_torch.py` import a framework. They run in a child process
(`mlxhog.arena.child`), since a GPU can end its process.
"""
