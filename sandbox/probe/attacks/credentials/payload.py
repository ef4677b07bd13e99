NAMES = {
    ".aws", ".ssh", ".netrc", ".docker", ".kube", ".config", ".git-credentials", ".npmrc", ".pypirc", ".huggingface",
    "id_rsa", "id_ed25519", ".env",
}  # fmt: skip


def attack():
    for place in directories():
        try:
            found = NAMES & set(os.listdir(place))
        except OSError:
            continue
        if found:
            return os.path.join(place, sorted(found)[0])
    return None
