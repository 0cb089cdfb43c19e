"""One command each: what a node does on the small models, in figures."""
