"""The containment checklist, tried from inside a real sandbox: attacks as data, and who runs them."""
