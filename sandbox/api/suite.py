"""Run a test suite inside a sandbox: given to `python -c`, with what to do as JSON in its only argument.

pytest and coverage are imported before any directory of the candidate is on the path. A candidate shares this
process all the same: what comes out of it is trust level L1 at most. Standard library only, outside those two.
"""

import json
import os
import sys

TASK = json.loads(sys.argv[1])


def main() -> int:
    """Run the tests, with coverage where a report of it is asked for; returns pytest's exit code."""
    import pytest

    os.makedirs(os.path.dirname(TASK["junit"]), exist_ok=True)
    if TASK["coverage"]:
        import coverage  # type: ignore[import-not-found,unused-ignore] # the image's

        # Data in memory, and no line is left out on the code's own word (`pragma: no cover`).
        measured = coverage.Coverage(data_file=None, source=["."], omit=TASK["omit"])
        measured.set_option("report:exclude_lines", [])
        measured.set_option("report:exclude_also", [])
        measured.set_option("report:partial_branches", [])
        measured.start()
    sys.path[:0] = [os.path.abspath(place) for place in (".", "src") if os.path.isdir(place)]
    code = int(pytest.main(["-q", "-p", "no:cacheprovider", f"--junitxml={TASK['junit']}", *TASK["tests"]]))
    if TASK["coverage"]:
        measured.stop()
        measured.xml_report(outfile=TASK["coverage"])
    return code


if __name__ == "__main__":
    sys.exit(main())
