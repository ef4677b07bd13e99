"""The Python API behind `import arsandbox`: each call degrades into a status, never into a traceback."""
