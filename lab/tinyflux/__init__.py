"""TinyFlux's training, sampling without ComfyUI's server, and measuring."""
