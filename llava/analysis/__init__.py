"""Figures and pages of what was measured. The only place that may import matplotlib (extra `plot`).

`attention`, `curves` and `tradeoff` draw with it; `traced`, `overlay`, `keep` and `page` need Pillow.
"""
