"""`mlxhog doctor`: what this machine can do, found out by doing it.

examine.py       everything below, one after the other, into one record
checks.py        what a check is; the machine, the versions, shared memory as workers use it
frameworks.py    every backend started, one gradient, tokens per second; memory between frameworks
bench.py         the arena of the litmus tests: what is added to, and how adds are counted
accessors.py     who adds and who reads in them
litmus.py        two writers at once: updates lost, values torn, adds per second
reads.py         a reader beside a writer: whole values, in order, soon
kernels.py       every Metal kernel against its reference, and MLX's text of it
training.py      a short run whose worker is killed, and whether its steps grow slower
verdict.py       what follows for --workers, --gpu-write and --read; the record is kept
table.py         the record as people read it

Only `probes_mlx.py` and `probes_torch.py` import a framework. They run in a child process
(`mlxhog.arena.child`), since a GPU can end its process.
"""
