"""From importance per position to what it says about a concept: tokens, maps, two scales, clusters."""
