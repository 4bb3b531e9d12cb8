"""From vision features to embeddings."""
