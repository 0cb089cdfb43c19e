"""LoRA files: keys, factors, merging many erasers into one, and how strong one is."""
