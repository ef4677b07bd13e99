"""What proposes edits: a command in a sandbox, aider, a queue of patches, a sweep over numbers."""
