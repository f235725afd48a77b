"""What `scripts/gpu_programme.py` measures, one module a part."""
