"""Small texts."""

TEXT = "the sea was calm and the ship went on to the far land where nobody had been before"
WORDS = TEXT.split()


def prose(count, first=0):
    """So many words, in lines of seven; another beginning gives another text."""
    words = [WORDS[(7 * i + i * i // 5 + first) % len(WORDS)] for i in range(count)]
    return "\n".join(" ".join(words[i : i + 7]) for i in range(0, count, 7)) + "\n"
