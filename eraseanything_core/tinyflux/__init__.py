"""TinyFlux: a small Flux checkpoint on a synthetic world in which every label is exact."""
