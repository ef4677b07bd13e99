"""What a sandbox may do and use: frozen models and presets."""
