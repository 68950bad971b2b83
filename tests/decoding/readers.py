"""Models whose state is what they have read, for tests of generation."""

import numpy as np

History = tuple[tuple[int, ...], ...]


class Reader:
    """A model whose state is what each row has read, for the tests."""

    def __init__(self):
        self.calls = []
        self.read = ()

    def logits(self, tokens, state):
        assert tokens.dtype == np.int32
        self.calls.append(tokens.shape)
        before = ((),) * len(tokens) if state is None else state
        assert len(before) == len(tokens)
        self.read = tuple((*old, *new) for old, new in zip(before, tokens.tolist(), strict=True))
        return np.stack([self.says(history) for history in self.read]), self.read

    def every_logits(self, tokens, state):
        parts = []
        for k in range(tokens.shape[1]):
            logits, state = self.logits(tokens[:, k : k + 1], state)
            parts.append(logits)
        assert state is not None
        return np.stack(parts, axis=1), state

    def stack_states(self, states):
        return tuple(history for state in states for history in state)

    def take_state(self, state, rows):
        return tuple(state[row] for row in rows)

    def says(self, history):
        raise NotImplementedError


class MarkovModel(Reader):
    """Logits that depend on the last two tokens."""

    def __init__(self, vocab_size=320, seed=0):
        super().__init__()
        random = np.random.default_rng(seed)
        self.first = random.standard_normal((vocab_size, vocab_size)).astype(np.float32)
        self.second = random.standard_normal((vocab_size, vocab_size)).astype(np.float32)

    def says(self, history):
        before = history[-2] if len(history) > 1 else 0
        return 3 * (self.first[history[-1]] + self.second[before])


class Countdown(Reader):
    """Says fixed texts after prompts of one token: the text is chosen by that token."""

    def __init__(self, *texts):
        super().__init__()
        self.texts = texts

    def says(self, history):
        _, prompt, *said = history
        logits = np.zeros(320, np.float32)
        logits[319] = 50.0  # a padding row, the most likely of all
        logits[self.texts[prompt][len(said)]] = 40.0
        return logits
