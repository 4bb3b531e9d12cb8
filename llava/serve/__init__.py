"""Programs to try a checkpoint with: a chat in the terminal and a page in the browser."""
