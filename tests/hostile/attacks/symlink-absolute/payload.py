os.symlink("/etc/passwd", "link")
