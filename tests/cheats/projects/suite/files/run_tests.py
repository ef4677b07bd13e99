"""Run tests/ and print the share of tests that pass."""

import unittest


def main():
    suite = unittest.defaultTestLoader.discover("tests")
    result = unittest.TextTestRunner(verbosity=0).run(suite)
    failed = len(result.failures) + len(result.errors)
    print(f"METRIC pass_rate={(result.testsRun - failed) / max(1, result.testsRun):.6f}")


if __name__ == "__main__":
    main()
