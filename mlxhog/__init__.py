"""mlxhog: lock-free training of xLSTM models with MLX and PyTorch workers on one set of parameters."""
