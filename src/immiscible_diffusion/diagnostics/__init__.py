"""What a coupling does to your data and noise, before any training."""
