"""A run on disk: its folder, checkpoints, metrics, progress bar, and signals that stop it."""
