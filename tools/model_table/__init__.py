"""Which architectures export: tiny random models of all, compared with Torch; docs/models.md is made of the results."""
