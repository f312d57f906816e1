"""Decoding: the loop, its acceptance rules, drafters, length policies, replay and calibration.

Submodules import mlx; this file does not, so that ``import harness.decode`` stays cheap.
"""
