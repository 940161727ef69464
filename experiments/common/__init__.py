"""Settings that several experiments share."""
