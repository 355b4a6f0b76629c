"""What keeps a training whole: its folder, files, checkpoints, signals and random state."""
