"""How well cleaning finds what was planted: a corpus made from a seed, and recall and precision by kind."""
