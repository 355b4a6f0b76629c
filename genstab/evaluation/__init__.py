"""Measure any model on any images, and say in words what was found."""
