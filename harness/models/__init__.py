"""Models: where they come from, how they are checked and opened, and the pair of target and draft. Imports mlx where a model is read."""
