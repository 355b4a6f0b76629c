"""What keeps a run intact: its folder, files, checkpoints, signals and random state."""
