os.symlink("/etc", "dir")
