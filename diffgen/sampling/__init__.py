"""From a checkpoint to files: what `diffgen-sample` does, and how any command draws."""
