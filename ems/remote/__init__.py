"""Experiments on another machine: the same ``ems`` runs there, and both sides talk over one SSH connection."""
