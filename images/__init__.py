"""Base images: recipes, deterministic composition and the catalogue of what was built."""
