"""One file a method; `autoprune` is a folder, with its settings, run, budget and complexity."""
