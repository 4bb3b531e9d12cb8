"""From questions to answers: one run, its files and its record."""
