"""CUDA devices that are not there, for tests: what raises on them, and what makes the host wait."""
