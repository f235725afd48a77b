"""What lies on disk: tensor files, checkpoints, run directories, and averages made from them after a run."""
