"""The vision tower, with a look at the CLS attention of its layers."""
