"""Pages, tables and pictures that compare runs."""
