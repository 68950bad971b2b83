"""`mlxhog doctor`: what this machine can do, found out by doing it.

checks.py          one finding: what was expected, what was found, what follows
facts.py           the machine, the versions, what is known to be wrong with either
memory.py          shared memory, as workers use it
backends.py        every backend started, one gradient, tokens per second
imports_*.py       which ways lead from one framework's memory to another's
bench.py           the arena of the litmus tests: what is added to, and how adds are counted
writers*.py        everyone who adds; readers*.py  everyone who reads
litmus.py          two writers at once: updates lost, values torn, adds per second
reads.py           a reader beside a writer: whole values, in order, soon
kernels.py         every Metal kernel against its reference
child.py           the processes all of this happens in, since a GPU can end its process
examine.py         one after the other, into one record
verdict.py         what follows for --gpu-write, --read and --workers
table.py           the record as people read it
"""
