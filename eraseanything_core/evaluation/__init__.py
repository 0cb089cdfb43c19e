"""How well a concept is erased and the rest is kept."""
