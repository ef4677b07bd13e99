"""Evaluation in roles: what a model answers is one sandbox's work, what that is worth another's."""
