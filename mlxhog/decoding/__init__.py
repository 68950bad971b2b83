"""Text from logits: choosing tokens, and generating with a recurrent state."""
