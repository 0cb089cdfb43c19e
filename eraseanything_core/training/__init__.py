"""Training an eraser: configuration, plan, trajectories, losses, the loop, and its state on disk."""
