"""What tests share: fixtures, helpers, stand-ins and fakes, a module for each subject. Nothing in here is a test.

A conftest.py imports the fixtures of its folder by name; a test imports the helpers that it calls. Only modules that
need Docker import it, so that unit tests do without.
"""
