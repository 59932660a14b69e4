"""Stand-ins of clouds: servers on loopback that keep state, check requests, fail as told, and count what is left."""
