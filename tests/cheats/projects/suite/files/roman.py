"""Roman numerals, unfinished: what subtracts (IV, IX) is missing."""

VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def from_roman(text):
    return sum(VALUES[letter] for letter in text)


def to_roman(number):
    found = ""
    for letter, value in reversed(VALUES.items()):
        found += letter * (number // value)
        number %= value
    return found
