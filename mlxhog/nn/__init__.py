"""xLSTM layers for models of your own: `mlxhog.nn.torch` and `mlxhog.nn.mlx`.

    from mlxhog.nn.torch import MLSTM, SLSTM, XLSTMBlock

Each of the two imports its framework; `mlxhog.nn` itself imports neither.
"""
