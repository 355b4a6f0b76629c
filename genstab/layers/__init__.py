"""Filters, blurred layers that stand in for the plain ones, and the surgery that puts them into a network."""
