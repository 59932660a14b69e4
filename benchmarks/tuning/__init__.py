"""Tuning against its peers: one process, same seeds, same initial design, peers at their defaults."""
