"""Models from any file, called as for a measurement, and applied to folders."""
