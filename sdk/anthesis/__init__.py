"""Client of the Anthesis platform."""
