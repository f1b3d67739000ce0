"""Containers of images: folders, zip archives, tar shards, parquet files and data sets of the hub."""
