"""What erasing needs to know of a concept: its other words, words that must survive, and prompts."""
