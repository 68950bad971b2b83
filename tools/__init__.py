"""Tools of development that do not ship: lint, sanitizers, coverage, Metal texts, proofs."""
