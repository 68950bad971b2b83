"""xLSTM models: one block is a spec, an MLX twin and a torch twin."""
