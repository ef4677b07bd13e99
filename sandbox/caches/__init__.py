"""Named, versioned caches that runs see and cannot change."""
