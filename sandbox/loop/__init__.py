"""Many experiments: propose, run, decide, promote, until a bound (docs/loop.md)."""
