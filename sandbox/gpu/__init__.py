"""GPUs for a stage: what was asked for, exclusive leases, what was used. docs/gpus.md."""
