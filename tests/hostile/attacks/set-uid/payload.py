open("suid", "w").close()
os.chmod("suid", 0o4755)
