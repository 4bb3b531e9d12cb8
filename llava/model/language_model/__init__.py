"""The decoder: our loop over stock layers, masks and attention rows, and `generate`."""
