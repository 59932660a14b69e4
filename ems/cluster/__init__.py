"""Clusters: definitions, the machines of a provider, their life from start to stop."""
