"""Every Metal kernel of the project; `metal/kernel.py` says how a family is laid out."""
