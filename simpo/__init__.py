"""The algorithm: preference objectives, the packed training step, checkpoints, generation and evaluation on one machine."""
