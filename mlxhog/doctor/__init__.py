"""`mlxhog doctor`: what this machine can do, measured on it.

examine.py       everything below, one after the other, into one record
checks.py        what a check is; the machine, the versions, shared memory as workers use it
frameworks.py    every backend started; memory between frameworks; a run whose worker is killed
accessors.py     the arena of the litmus tests, its writers and its readers
litmus.py        two writers at once: lost, torn, per second; a reader beside a writer
kernels.py       every Metal kernel against its reference, and MLX's text of it
record.py        what follows for --workers, --gpu-write and --read; the file; the tables

Only `probes_mlx.py` and `probes_torch.py` import a framework. They run in a child process
(`mlxhog.arena.child`), since a GPU can end its process.
"""
