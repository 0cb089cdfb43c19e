"""The bridge: the one package of the core that imports ComfyUI; it runs the models that ComfyUI has loaded."""
