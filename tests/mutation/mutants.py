"""Ninety-six small faults in the core, each with the tests that should notice it.

A mutant changes one line: the first text stands in exactly one line of the file, and becomes the
second one there. Where a file moves, change its name here; where a line changes, change the text or
replace the mutant. `python -m tests.mutation --list` names those that no longer fit.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault: the file, the text that is replaced, what replaces it, and the tests to run."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


# file -> the tests that should notice, and the pairs (old, new)
FAULTS: dict[str, tuple[tuple[str, ...], list[tuple[str, str]]]] = {
    "mlxhog/arena/layout.py": (
        ("tests/arena/test_layout.py",),
        [
            ("if segment.offset % PAGE or not 0", "if not 0"),
            ("_round_up(offset + size, ALIGN_FLOATS)", "offset + size"),
            ('rows += shape[0] if kind == "rows"', 'rows += 1 if kind == "rows"'),
            ("max(RING_LEAST, 2 * max_workers)", "RING_LEAST"),
            ("return -(-n // multiple) * multiple", "return n // multiple * multiple"),
            ("if row is None else stripes + row", "if row is None else row"),
            ("(piece + 1) * PIECE_ENDS", "(piece + 1) * PIECE_BEGINS"),
            ("math.prod(slot.shape) == slot.size", "slot.size >= 0"),
        ],
    ),
    "mlxhog/arena/arena.py": (
        ("tests/metal/test_adds.py",),
        [
            ("max(0.0, 1.0 - float(probe.mean(dtype=np.float64)) / adds)", "0.0"),
        ],
    ),
    "mlxhog/arena/segment.py": (
        ("tests/arena/test_arena.py",),
        [
            ("if hashlib.sha256(body).digest() != checksum:", "if False:"),
            ("if hashlib.sha256(text).digest() != digest:", "if False:"),
            ("if len(data) < total:", "if len(data) < 0:"),
        ],
    ),
    "mlxhog/arena/workers.py": (
        ("tests/arena/test_workers.py",),
        [
            ("entry.incarnation = incarnation", "entry.incarnation = 1"),
            ("if entry.state == State.DEAD:", "if entry.state == State.FINISHED:"),
            ("(State.STARTING, State.RUNNING", "(State.RUNNING, State.RUNNING"),
            ("_native.sweep_locks(self._lock_words, entry.slot)", "pass"),
            ("self.compute_ns + self.apply_ns", "self.compute_ns + self.wait_ns"),
        ],
    ),
    "mlxhog/arena/control.py": (
        ("tests/arena/test_arena.py", "tests/arena/test_control.py"),
        [
            ("max(self._read, head - CAPACITY + 1)", "self._read"),
            ("if not self._data.flags.writeable:", "if False:"),
        ],
    ),
    "mlxhog/arena/ledger.py": (
        (
            "tests/arena/test_ledger.py",
            "tests/arena/test_ledger_processes.py",
            "tests/strategies/test_hogwild_claims.py",
        ),
        [
            ("end = watermark + count", "end = watermark + count - 1"),
            ("if ticket >= end:", "if ticket > end:"),
            ("return self.watermark // self.n", "return self.watermark // self.n + 1"),
            ("now - met >= ORPHAN_GRACE_NS", "now - met >= 0"),
            ("return watermark + len(done)", "return watermark"),
            ('self._retry_torn = on_torn == "retry"', "self._retry_torn = True"),
            ("done=[g - start for g in done]", "done=done"),
            ('if position["n"] != self.n:', "if False:"),
        ],
    ),
    "mlxhog/data/tokens.py": (
        ("tests/data/test_tokens.py",),
        [
            ("!= 0 or int(starts[-1]) != n:", "!= 0:"),
            ("(self.n_tokens - 1) // seq_len if", "self.n_tokens // seq_len if"),
            ("numbers[(numbers < 0) | (numbers >= n)]", "numbers[numbers >= n]"),
            ("file._check_ids(max(0, n - edge), n)", "file._check_ids(n, n)"),
            ("if digest != self.digest:", "if False:"),
            ("if count < 1 or size != count * dtype.itemsize:", "if count < 1:"),
            ("(self.starts[1:] < starts).any()", "False"),
            ("return 2 if tokenizer.vocab_size <= 65_536 else 4", "return 2"),
        ],
    ),
    "mlxhog/data/heldout.py": (
        ("tests/data/test_heldout.py",),
        [
            ('val == "tail" or sizes.n_documents <= _OFFSET', 'val == "tail"'),
            ("6 * sizes.longest <= n_bytes and ", ""),
            ("and 6 * twelfths <= n_bytes <= 24 * twelfths", ""),
            ("else i % _EVERY == _OFFSET", "else i % _EVERY == 0"),
            ("_EVERY * held_out + (_OFFSET + 1) * size <= seen", "False"),
            ("document[after_space] & 0xC0 == 0x80", "False"),
            ("y[y == file.bos] = IGNORED", "pass"),
            ("2.0 * parameters * seq_len", "parameters * seq_len"),
            ("np.arange(n, dtype=np.int64) * total // n", "np.arange(n, dtype=np.int64)"),
            ("(first + count) * batch_size", "count * batch_size"),
        ],
    ),
    "mlxhog/files/durable.py": (
        ("tests/files/test_durable.py",),
        [
            ("        flush(file.fileno())", "        pass"),
            ("    os.fsync(descriptor)", "    pass"),
            ("        sync(part)", "        pass"),
            ("        sync(target.parent)", "        pass"),
        ],
    ),
    "mlxhog/optim/updates.py": (
        (
            "tests/metal/test_adds.py",
            "tests/metal/test_one_worker.py",
            "tests/metal/test_sparse_adds.py",
        ),
        [
            ("<= delta.index.max() < slot.shape[0]", "<= delta.index.max() <= slot.shape[0]"),
            ("np.add.at(param, delta.index, delta.values)", "param[delta.index] += delta.values"),
            ("(dst, src, prev, coef, threads)", "(dst, src, prev, -coef, threads)"),
        ],
    ),
    "mlxhog/optim/gradients.py": (
        ("tests/optim/test_gradients.py",),
        [
            ("self.index[1:] > self.index[:-1]", "self.index[1:] >= self.index[:-1]"),
            ("self._dense[name] += grad * scale", "self._dense[name] += grad"),
            (
                "Rows(grad.index.copy(), grad.values * scale)",
                "Rows(grad.index, grad.values * scale)",
            ),
            ("if max_norm > 0 else 1.0", "if max_norm >= 0 else 1.0"),
            ("grad.coalesced().values if", "grad.values if"),
        ],
    ),
    "mlxhog/optim/adamw.py": (
        (
            "tests/optim/test_optimizers.py",
            "tests/optim/test_torch.py",
            "tests/metal/test_one_worker.py",
        ),
        [
            ("float32(1.0 - beta2) * squared", "float32(1.0 - beta1) * squared"),
            ("step.shared_count if self.shared else step.count", "step.count"),
            ("if slot.name in target.decay else 0.0", ""),
            ('return ("m", "v") if self.shared else ()', "return ()"),
        ],
    ),
    "mlxhog/optim/sgd.py": (
        (
            "tests/optim/test_optimizers.py",
            "tests/optim/test_torch.py",
            "tests/metal/test_one_worker.py",
        ),
        [
            ("m = float32(momentum) * m + d", "m = float32(momentum) * (m + d)"),
        ],
    ),
    "mlxhog/optim/muon.py": (
        ("tests/optim/test_muon.py",),
        [
            ("RMS * math.sqrt(max(min(", "RMS * math.sqrt(min(min("),
            (
                'm_flat = target.moments(shared=self.shared)["m"]',
                'm_flat = target.moments(shared=self.shared)["m"].copy()',
            ),
        ],
    ),
    "mlxhog/optim/directions.py": (
        ("tests/optim/test_muon.py",),
        [
            ("for slot, grad in pairs if slot.name not in hidden]", "for slot, grad in pairs]"),
        ],
    ),
    "mlxhog/optim/rule.py": (
        ("tests/optim/test_optimizers.py", "tests/optim/test_torch.py"),
        [
            (
                "yield slot, grad.coalesced() if isinstance(grad, Rows) else grad",
                "yield slot, grad",
            ),
        ],
    ),
    "mlxhog/config/schedules.py": (
        ("tests/config/test_schedules.py",),
        [
            ("(progress - warmup) / (1.0 - warmup)", "progress / (1.0 - warmup)"),
            ("(progress - (1.0 - WSD_DECAY)) / WSD_DECAY", "(progress - WSD_DECAY) / WSD_DECAY"),
            ("if update >= backoff_start(stage + 1", "if update > backoff_start(stage + 1"),
            ("self.at(lr, progress, epochs.of(update))", "self.at(lr, progress, update)"),
            ("(update - self.version) * self.per_update", "update * self.per_update"),
        ],
    ),
    "mlxhog/optim/sparsified.py": (
        ("tests/optim/test_taking.py", "tests/optim/test_sparsified.py"),
        [
            ("keep=self.error_feedback,", "keep=True,"),
            ("math.ceil(selection.share * elements)", "int(selection.share * elements)"),
            (
                "_native.take_reaching(*place, selection.share * lr, keep)",
                "_native.take_reaching(*place, selection.share, keep)",
            ),
        ],
    ),
    "mlxhog/strategies/look_ahead.py": (
        ("tests/strategies/test_look_ahead.py",),
        [
            ("MEMORY * self.others + (1.0 - MEMORY)", "MEMORY * self.others + MEMORY"),
            ('load("version")) / self._workers', 'load("version")) * self._workers'),
            ("if steps <= self._workers:", "if True:"),
            ("self.others = workers - 1.0", "self.others = workers + 0.0"),
        ],
    ),
    "mlxhog/strategies/hogwild.py": (
        ("tests/strategies/test_hogwild_claims.py", "tests/training/test_strategies.py"),
        [
            ('load("version") - self._version_read', 'load("version")'),
            ("applied = bool(np.isfinite(norm)) and not late", "applied = not late"),
            ("context.shared_steps() + 1,", "context.shared_steps(),"),
        ],
    ),
    "mlxhog/strategies/strategy.py": (
        ("tests/strategies/test_hogwild_claims.py", "tests/strategies/test_exact_budget.py"),
        [
            ('ledger.count_done() - arena.counters.load("tickets_before")', "ledger.count_done()"),
        ],
    ),
    "mlxhog/strategies/round_robin.py": (
        ("tests/strategies/test_round_robin.py",),
        [
            ("words.store(0, _TURN, turn + 1)", "words.store(0, _TURN, turn)"),
            (
                "record.version - record.applied - entry.version_read",
                "record.version - entry.version_read",
            ),
        ],
    ),
    "mlxhog/strategies/sync.py": (
        ("tests/strategies/test_sync.py",),
        [
            ("mean *= scale", "mean *= 1"),
            ("float(np.sqrt(self._norms.sum()))", "float(self._norms.sum())"),
        ],
    ),
    "mlxhog/strategies/local.py": (
        ("tests/strategies/test_local.py",),
        [
            ("mean *= np.float32(1.0 / replicas)", "mean *= np.float32(1.0)"),
            ("tokens - rounds.of_run(TOKENS_BEFORE)", "tokens"),
        ],
    ),
    "mlxhog/strategies/disjoint.py": (
        ("tests/strategies/test_disjoint.py",),
        [
            ("self._at(self.held), now << 16)", "self._at(self.held), 0)"),
            ("if self._steps_here >= self._rotate_every:", "if False:"),
            ("quotas[max(divisible", "quotas[min(divisible"),
        ],
    ),
    "models/ops/reference/mlstm_numpy.py": (
        ("tests/models/test_numpy_reference.py", "tests/models/test_mlstm_forms.py"),
        [
            ("np.maximum(np.abs(den), np.exp(-m)) + eps", "np.abs(den) + eps"),
            ('(np.einsum("bhkv,bhv->bhk", dC, v_t) + dn)', 'np.einsum("bhkv,bhv->bhk", dC, v_t)'),
            ("decay = np.exp(g + m - m_new)", "decay = np.exp(g - m_new)"),
        ],
    ),
    "models/ops/reference/recurrences_numpy.py": (
        ("tests/models/test_slstm_cell.py", "tests/models/test_sequence_ops.py"),
        [
            ("np.where(n == 0, i_t, np.maximum(i_t, lf))", "np.maximum(i_t, lf)"),
            ("(v[:, t] - held)", "v[:, t]"),
        ],
    ),
    "models/ops/reference/layers_numpy.py": (
        (
            "tests/models/test_numpy_reference.py",
            "tests/models/test_v1_ops.py",
            "tests/models/test_sequence_ops.py",
        ),
        [
            ("inverse * (dy - mean - unit", "inverse * (dy - unit"),
            ("max(oldest, t - window)", "max(oldest, t - window + 1)"),
        ],
    ),
    "models/ops/kernels.py": (
        ("tests/models/test_kernels.py",),
        [
            ('return "metal" if metal_verified else "reference"', 'return "metal"'),
        ],
    ),
}

MUTANTS = [
    Mutant(file, old, new, tests) for file, (tests, pairs) in FAULTS.items() for old, new in pairs
]
