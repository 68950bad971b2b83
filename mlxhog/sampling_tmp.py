def sample_text(backend, tokenizer, *, seed, beat):
    return "tmp"
