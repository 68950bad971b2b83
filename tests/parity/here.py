"""The sides of a comparison computed in the test's process, which has imported torch already."""

from multiprocessing import Pipe


class Here:
    """Replaces `mlxhog.arena.child.Child`: computes in the process that starts it."""

    def __init__(self):
        self.pipe, self._end = Pipe()
        self._result = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def start(self, function, *arguments):
        """Compute, and make the pipe ready to be read."""
        self._result = function(None, *arguments)
        self._end.send(None)

    def take(self, limit_s):
        """What has been computed."""
        self.pipe.recv()
        return self._result

    def close(self):
        """End it."""
        self.pipe.close()
        self._end.close()
