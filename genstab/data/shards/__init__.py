"""Pairs in tar files, for data sets that do not fit one disk."""
