os.mkfifo("pipe")
