"""TinyFlux: a small Flux checkpoint on a synthetic world in which every label is exact."""

MU, STEPS, GUIDANCE = 1.15, 20, 3.5  # the sampler's settings that it is made for; MU is ComfyUI's shift for Flux
