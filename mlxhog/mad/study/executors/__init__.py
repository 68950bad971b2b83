"""Who executes the runs of a study: `local` processes, or `ray`.

Both are a pool of workers that serve one run after the other (`pool`, `serve`); they differ in how
a worker is started, reached and ended.
"""
