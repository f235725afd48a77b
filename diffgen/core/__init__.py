"""What every room uses and what knows nothing of diffusion: errors, tables, settings, files, processes, the screen."""
