open("secret", "w").close()
os.chmod("secret", 0)
