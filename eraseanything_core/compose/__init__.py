"""Many erasers in one: read in any key style, combined by one formula, written as one LoRA."""
