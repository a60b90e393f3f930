"""Training: parameters, Trainer set-up, checkpoints and callbacks."""
