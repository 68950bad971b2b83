"""Generate text with a recurrent state, and choose tokens from logits."""
