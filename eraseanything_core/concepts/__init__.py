"""What erasing needs to know of a concept: its other words, words that must survive, and prompts."""

from .concept_set import TIERS, ConceptSet, Word, erased

__all__ = ["TIERS", "ConceptSet", "Word", "erased"]
