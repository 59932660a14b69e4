"""Measured figures, re-run by one command: ``make bench``."""
