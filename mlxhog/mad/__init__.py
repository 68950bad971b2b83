"""Mechanistic Architecture Design: tasks, training and scoring, and search over architectures.

Source: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures, arXiv:2403.17844.
"""
