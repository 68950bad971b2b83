"""`mlxhog doctor`: measures the abilities of this machine.

examine.py       runs all checks below, one after the other, into one record
checks.py        `Check`; checks of the machine, the versions and shared memory
frameworks.py    starts every backend; memory between frameworks; a run whose worker is killed
accessors.py     the arena of the litmus tests, its writers and its readers
repeats.py       the same gradient of a GPU in two processes, bit by bit
pair.py          runs with both engines of a GPU, and with one of them
litmus.py        two writers at once: lost and torn values, speed; a reader beside a writer
kernels.py       every Metal kernel against its reference, and its operator; MLX's text of it
record.py        consequences for --workers, --gpu-write and --read; the tables

Only `probes_mlx.py` and `probes_torch.py` import a framework. They run in a child process
(`mlxhog.arena.child`), since a GPU can end its process.
"""
