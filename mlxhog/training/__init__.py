"""Training: a plan is made, a supervisor starts workers by it, and each worker trains.

Imports point from `supervisor` to `worker` to `plan`.
"""
