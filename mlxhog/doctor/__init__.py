"""`mlxhog doctor`: what this machine can do, found out by doing it.

examine.py       everything below, one after the other, into one record
checks.py        one finding: what was expected, what was found, what follows
facts.py         the machine, the versions, what is known to be wrong with either
memory.py        shared memory, as workers use it
backends.py      every backend started, one gradient, tokens per second
imports*.py      which ways lead from one framework's memory to another's
litmus.py        two writers at once: updates lost, values torn, adds per second
reads.py         a reader beside a writer: whole values, in order, soon
kinds.py         which writers, readers and Metal engines this machine has
writers*.py      everyone who adds; readers*.py  everyone who reads
bench.py         the arena of both: what is added to, and how adds are counted
kernels.py       every Metal kernel against its reference; wrapper.py  and MLX's text of it
training.py      a short run whose worker is killed; pace.py  and whether its steps grow slower
child.py         the processes all of this happens in, since a GPU can end its process
verdict.py       what follows for --workers, --gpu-write and --read
store.py         the record is kept; `mlxhog.machine.verdicts` reads it
table.py         the record as people read it; progress.py  what is being looked at

Only files named `*_mlx.py` and `*_torch.py` import a framework, and only in a child.
"""
