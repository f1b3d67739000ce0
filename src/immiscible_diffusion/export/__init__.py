"""Trained models as folders that others can load: diffusers' layout, safetensors and JSON, and a model card."""
