"""Figures of what was measured. The only place that may import matplotlib (extra `plot`)."""
