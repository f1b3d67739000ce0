"""What a coupling does: to pairs, to training, to samples."""
