"""Directed Evolution for neural networks: what can be zeroed, found by trying."""
