for _ in range(1000):
    os.mkdir("d")
    os.chdir("d")
open("bottom", "w").close()
