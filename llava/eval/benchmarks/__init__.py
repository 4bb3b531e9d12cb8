"""One file a benchmark: how its questions are recovered, joined with annotations and scored."""
