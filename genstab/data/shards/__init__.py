"""Pairs in tar files (shards), for datasets that do not fit on one disk."""
