"""The names of mlx beside its core that training needs, imported after the BLAS."""

from __future__ import annotations

from harness.models.blas import mx, nn

# isort: split
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

__all__ = ["mx", "nn", "optim", "tree_flatten", "tree_map", "tree_unflatten"]
