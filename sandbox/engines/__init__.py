"""Engines run sandboxes; they are found by entry point and reached through the port."""
