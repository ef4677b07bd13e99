"""The corpus of cheats (tests/cheats) as data, what it is run by, and the table of what came of it."""
