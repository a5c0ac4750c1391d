"""Damage: to bytes, and to what JSON holds. Each function says in words what it did."""

import copy

INTEGERS = (0, 1, 2, 4, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LONG = (*INTEGERS, 2**53, 2**63 - 1, 2**63, 2**64 - 1)

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, -5, 0.5, -0.25, 1e-300, 1e300, 1.0, 2**31, 2**53, 2**63),
    *(
        10**30,
        10**400,
        "",
        "x",
        "1",
        "none",
        "nan",
        "inf",
        "-inf",
        "naïve",
        "a\nb",
        "\0",
        "x" * 5000,
    ),
    *([], [1], [[]], {}, {"a": 1}, [None], ["x", 2, None], [[[[[[1]]]]]], [0] * 200),
)
#: Text that stands in JSON where a value was; Python's own writer would not write it.
TEXTS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-0", "0" * 50, "9" * 5000, "[" * 50_000, "tru", ""),
    *(
        "[" * 20_000 + "]" * 20_000,
        '{"a":' * 20_000 + "1" + "}" * 20_000,
        '"\\ud800"',
        "{,}",
        "\x00",
    ),
)


def place(rng, size):
    """Somewhere, at the beginning rather than at the end: there the headers are."""
    return min(size - 1, int(size * rng.random() ** rng.choice((1, 4, 8)))) if size else 0


def change_bytes(rng, content):
    """Content with one to three changes, none of which is without effect."""
    changed, done = content, []
    while changed == content:
        changed, done = bytearray(content), []
        for _ in range(rng.choice((1, 1, 2, 3))):
            name = rng.choice(tuple(_BYTES))
            at = place(rng, len(changed))
            length = rng.choice((1, 2, 4, 8, 64, 1024))
            changed = bytearray(_BYTES[name](rng, changed, at, length))
            done.append(f"{name} at {at}")
        changed = bytes(changed)
    return changed, ", ".join(done)


def _flip(rng, content, at, length):
    if content:
        content[at] ^= 1 << rng.randrange(8)
    return content


def _integer(rng, content, at, length):
    size = min(length, 8)
    value = rng.choice(LONG) % (1 << 8 * size)
    return content[:at] + value.to_bytes(size, rng.choice(("big", "little"))) + content[at + size :]


_BYTES = {
    "a flipped bit": _flip,
    "an integer": _integer,
    "an end": lambda rng, c, at, n: c[:at],
    "a gap": lambda rng, c, at, n: c[:at] + c[at + n :],
    "a repetition": lambda rng, c, at, n: c[: at + n] + c[at:],
    "noise": lambda rng, c, at, n: c[:at] + rng.randbytes(n) + c[at + n :],
    "inserted noise": lambda rng, c, at, n: c[:at] + rng.randbytes(n) + c[at:],
    "zeros": lambda rng, c, at, n: c[:at] + bytes(n) + c[at + n :],
    "a surplus": lambda rng, c, at, n: c + rng.choice((bytes(n), rng.randbytes(n), c[:n])),
    "another file": lambda rng, c, at, n: rng.choice(
        (b"", b"{}", b"no", bytes(n), rng.randbytes(n))
    ),
}


def places(value, path=()):
    """Paths of all values inside a value from JSON, its own included."""
    found = [path]
    if isinstance(value, dict):
        for name, inner in value.items():
            found += places(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*path, index))
    return found


def change_json(rng, value, under=()):
    """A value from JSON with one change somewhere inside, under a path."""
    changed = copy.deepcopy(value)
    while True:
        outer = changed
        for key in under:
            outer = outer[key]
        path = (*under, *rng.choice(places(outer)))
        if not path:
            continue
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        key, old = path[-1], holder[path[-1]]
        name = rng.choice(("value", "value", "near", "near", "less", "more", "other"))
        if name == "less":
            del holder[key]
        elif name == "more" and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(old))
        elif name == "more":
            holder[rng.choice(("more", "", "step", "a/b", "x" * 300))] = rng.choice(VALUES)
        elif name == "other":
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            holder[key] = copy.deepcopy(holder[rng.choice(keys)])
        elif name == "near":
            holder[key] = _near(rng, old)
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        if repr(changed) != repr(value):
            return changed, f"{name} of {'.'.join(map(str, path))}"
        changed = copy.deepcopy(value)


def _near(rng, value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, 1000 * value, float(value), str(value)))
    if isinstance(value, float):
        return rng.choice((-value, 2 * value, 1e9 * value, int(value), str(value)))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.upper(), value + "\n", [value]))
    if isinstance(value, list):
        return rng.choice((value[:-1], value + value, value[::-1], {"a": value}))
    return rng.choice((0, [], {"a": value}, str(value)[:100]))
