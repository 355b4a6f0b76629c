"""Generators with a blur at every resampling step, and the discriminator."""
