import resource


def attack():
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
        hard = resource.getrlimit(limit)[1]
        if hard == resource.RLIM_INFINITY:
            return f"limit {limit} is infinite"
        try:
            resource.setrlimit(limit, (hard, hard + 1))
        except ValueError:
            continue
        return f"limit {limit} raised above {hard}"
    return None
