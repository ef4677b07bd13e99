"""Snapshots of repositories, overlay layers, and reading back what a run left."""
