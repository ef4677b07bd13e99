"""What scripts/test does once the machine is set up: linters, tests, groups of tests, and what it says of them."""
