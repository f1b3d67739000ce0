"""All measurements that need a GPU, for a bare machine that is lent for minutes: see docs/gpu.md."""
