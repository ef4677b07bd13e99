"""`arsandbox doctor`: is this machine able and safe, and what to do where it is not. docs/doctor.md."""

from arsandbox.sandbox.doctor.engines import known_holes
from arsandbox.sandbox.doctor.examination import examine
from arsandbox.sandbox.doctor.rows import Row

__all__ = ["Row", "examine", "known_holes"]
