"""Stages, the loop that trains them, optimisers and checkpoints."""
