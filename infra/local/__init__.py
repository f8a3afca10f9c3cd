"""Everything on one machine, under supervisor."""
