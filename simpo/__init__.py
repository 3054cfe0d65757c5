"""The algorithm on one machine: objectives, the packed step, checkpoints, generation, evaluation."""
