os.symlink("b", "a")
os.symlink("a", "b")
