"""Which architectures export: a tiny random model of each, compared with Torch; docs/models.md is made of the results."""
