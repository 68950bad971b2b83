"""Measure this machine's capabilities: `mlxhog doctor`.

checks.py      `Check`; checks of the machine, the versions and shared memory
backends.py    a gradient of every backend against the reference; speed, and repeatability on a GPU
kernels.py     every Metal kernel on every Metal engine of an Apple GPU
litmus.py      two concurrent writers: lost and torn values, speed; a reader beside a writer
pair.py        runs with both engines of a GPU against runs with one
system.py      more facts for a report: macOS, Python, memory, power
report.py      the file of --report: record, facts, speeds, a default training run with its logs
record.py      runs all checks into one capability record; the values that it gives to options;
               the tables

Only `probes_mlx.py` and `probes_torch.py` import a framework. They run in a child process
(`mlxhog.arena.child`), since a GPU can end its process.
"""
