"""Records as signed evidence: keys, statements, bundles, and checking them elsewhere."""
