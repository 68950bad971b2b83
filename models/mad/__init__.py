"""MAD candidates: any sequence of layers, each with a norm before it and a residual around it.

Every mixer (attention, a recurrence, a convolution) and every channel mixer (an MLP) is a layer;
`layers/` has them with their equations. A model is defined by the flat list of its layers with all
their numbers; `sequence.py` reads the short forms of such lists.
"""
