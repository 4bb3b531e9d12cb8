"""Runs of official code, recorded as numbers, and replayed here."""
