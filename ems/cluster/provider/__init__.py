"""What makes the machines of a cluster: one Protocol, an implementation for each kind of provider."""
