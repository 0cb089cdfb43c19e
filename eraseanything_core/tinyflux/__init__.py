"""TinyFlux: a small Flux checkpoint on a synthetic world in which every label is exact.

Only what nodes and judges reach is here. The training of TinyFlux and every measurement on it are in `lab/tinyflux`.
"""

# The sampler's settings that TinyFlux is made for.
MU = 1.15  # ComfyUI's sampling shift for Flux
STEPS = 20
GUIDANCE = 3.5
