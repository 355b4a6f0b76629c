"""Generators and the discriminator, each with a blur at every resampling step."""
