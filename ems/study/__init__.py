"""Studies: an experiment whose runs are chosen while it goes on, by a driver that wakes, looks, decides and sleeps."""
