def section(r):
    return None


def draw(r, o):
    pass
