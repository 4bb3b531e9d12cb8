"""What all parts stand on: JSON and pictures from outside, and how a program begins and ends."""
