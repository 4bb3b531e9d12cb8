"""Figures and studies, drawn from traces and records.

The only place that may import matplotlib (extra `plot`).

`attention`, `curves` and `tradeoff` draw with it; the others need Pillow at most.
"""
