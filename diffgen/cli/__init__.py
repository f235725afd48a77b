"""Commands: the only importers of Hydra and OmegaConf."""
