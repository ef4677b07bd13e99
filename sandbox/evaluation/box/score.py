"""The scorer's program: `python3 -I -c "...; from arsandbox_box.score import main; main()"` in its own sandbox."""

from __future__ import annotations

from .session import RefusedError, Result, Session, connect, read_task


def main() -> None:
    """Score what the task says and hand the result to the controller; nothing else leaves."""
    task = read_task()
    interface = task.pop("interface")
    with connect() as channel:
        session = Session(channel, int(task.get("vocabulary", 1)))
        try:
            if interface == "lm":
                from . import language_model

                result = language_model.score(session, task)
            else:
                from . import predictions

                result = predictions.score(task)
        except RefusedError as error:
            result = Result(findings=[{"code": error.code, "detail": error.detail}])
        session.finish(result)
