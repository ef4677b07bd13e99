"""What roman.py must do."""

import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from roman import from_roman, to_roman

PAIRS = {1: "I", 3: "III", 4: "IV", 6: "VI", 9: "IX", 14: "XIV", 40: "XL", 1066: "MLXVI", 1994: "MCMXCIV"}


class Reading(unittest.TestCase):
    pass


class Writing(unittest.TestCase):
    pass


for number, text in PAIRS.items():
    setattr(Reading, f"test_{text}", lambda self, n=number, t=text: self.assertEqual(from_roman(t), n))
    setattr(Writing, f"test_{number}", lambda self, n=number, t=text: self.assertEqual(to_roman(n), t))
