"""The attention that the tokens of a word get: reading it, showing it, and scaling it down."""
