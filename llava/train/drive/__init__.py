"""A small driving world in Senna's format: frames, their six views, and a model trained on them."""
