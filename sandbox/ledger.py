"""The ledger of one repository: append-only, hash-chained records in SQLite (WAL).

An experiment is announced (`begin`) before anything of it exists, may note an intended promotion
(`intend`), and ends as one record (`append`). What was announced and never ended belongs to a
controller that died; the next start finishes it. Each record holds the hash of the one before:
`ledger_hash` = SHA-256 of the record's canonical JSON (RFC 8785) without that field.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3  # noqa: TID251 - the only importer of the database
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arsandbox.sandbox import state
from arsandbox.sandbox.canonical import canonical, digest
from arsandbox.sandbox.errors import StateError, UsageError
from arsandbox.sandbox.summary import Summary

if TYPE_CHECKING:
    from arsandbox.sandbox.record import Record

GENESIS = "0" * 64
_SCHEMA = 2
_VERSION_1 = """
CREATE TABLE IF NOT EXISTS records (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    branch TEXT NOT NULL,
    setup TEXT NOT NULL,
    verdict TEXT NOT NULL,
    tree TEXT NOT NULL,
    document TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE
);
CREATE INDEX IF NOT EXISTS records_by_tree ON records (tree, setup);
CREATE TABLE IF NOT EXISTS open_experiments (id TEXT PRIMARY KEY, draft TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS intents (id TEXT PRIMARY KEY, record TEXT NOT NULL, old_commit TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS records_stay BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'records are append-only'); END;
CREATE TRIGGER IF NOT EXISTS records_remain BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'records are append-only'); END;
"""
# Version 2 finds promotions and reruns without reading every record; stored documents stay as they were.
_VERSION_2 = """
CREATE INDEX IF NOT EXISTS records_promoted ON records (branch, sequence)
    WHERE json_extract(document, '$.promotion.commit') IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_rerun ON records (json_extract(document, '$.rerun.of'))
    WHERE json_extract(document, '$.rerun.of') IS NOT NULL;
"""
_MIGRATIONS = (_VERSION_1, _VERSION_2)
# What is written about an experiment comes after it: no older record is read.
_AFTER = "SELECT document FROM records WHERE sequence > (SELECT sequence FROM records WHERE id = ?1)"


@dataclass(frozen=True)
class Intent:
    """A promotion that was about to happen: the final record, and the ref's commit before it."""

    record: Record
    old_commit: str


def record_hash(record: Record) -> str:
    """Hex SHA-256 over the canonical JSON of `record` without `ledger_hash`."""
    return digest(record.model_dump(mode="json", exclude={"ledger_hash"}))


def shown(text: object) -> str:
    """`text` for one line of output: as it is, or escaped where it is no printable text."""
    return text if isinstance(text, str) and text.isprintable() else ascii(text)


def chain_problems(documents: Iterable[tuple[int, str | bytes]], *, contiguous: bool) -> Iterator[str]:
    """Every break in a sequence of (number, stored record): what was changed, removed or reordered.

    `contiguous` says that the sequence begins at the first record of a ledger and leaves none out.
    """
    previous = GENESIS
    for number, text in documents:
        try:
            document = json.loads(text if isinstance(text, str) else text.decode())
            identity = shown(document["id"])
            claimed, before = document.pop("ledger_hash"), document["previous_hash"]
            actual = claimed if _quickly_whole(text, claimed) else digest(document)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
            yield f"record {number} cannot be read"
            return
        if actual != claimed:
            yield f"record {number} ({identity}) was changed"
        if contiguous and before != previous:
            yield f"a record before {number} ({identity}) was removed, added or reordered"
        previous = claimed


def _quickly_whole(text: str | bytes, claimed: object) -> bool:
    """Whether `text` is canonical but for the one hash field at its top level, and hashes to it without it.

    Ten times faster than making the canonical form; a text of another form takes that way instead.
    """
    raw = text.encode() if isinstance(text, str) else text
    name, field = b'"ledger_hash":', f'"ledger_hash":"{claimed}",'.encode()
    if raw.count(name) != 1 or field not in raw:
        return False
    return hashlib.sha256(raw.replace(field, b"", 1)).hexdigest() == claimed


class Ledger:
    """Open with `Ledger.open`; safe for several controllers at once, one writer at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Ledger]:
        """The ledger in `directory`, created when missing. Raises StateError for a damaged or newer one."""
        path = directory / "ledger.db"
        try:
            connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        except sqlite3.Error as error:
            raise StateError(f"cannot open {path}: {error}", hint="is the disk full or the directory gone?") from error
        try:
            ledger = cls(connection, path)
            # SQLite does not wait for its own change of journal mode: two first openers would see "locked".
            with state.exclusive(directory / "ledger.lock"), ledger._translated():
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                found = connection.execute("PRAGMA user_version").fetchone()[0]
                if found > _SCHEMA:
                    raise StateError(f"{path} was written by a newer arsandbox", hint="pip install -U arsandbox")
                for version in range(found, _SCHEMA):
                    if version == 1 and ledger._holds_damage():
                        break  # its indexes cannot be made over such a record; all else works without them
                    script = f"BEGIN IMMEDIATE;{_MIGRATIONS[version]}PRAGMA user_version={version + 1};COMMIT;"
                    connection.executescript(script)
            yield ledger
        finally:
            connection.close()

    def begin(self, draft: Record) -> None:
        """Announce an experiment before anything of it exists. Raises StateError, as all that writes here."""
        text = _text(draft)
        with self._transaction():
            self._connection.execute("INSERT INTO open_experiments VALUES (?, ?)", (draft.id, text))

    def withdraw(self, experiment: str) -> None:
        """What was announced did not begin and leaves no record: nothing of it has run."""
        with self._transaction():
            self._connection.execute("DELETE FROM open_experiments WHERE id = ?", (experiment,))

    def intend(self, record: Record, old_commit: str) -> None:
        """Note the promotion that `record` carries before the ref is moved."""
        text = _text(record)
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO intents VALUES (?, ?, ?)", (record.id, text, old_commit))

    def forget_intent(self, experiment: str) -> None:
        """The noted promotion did not happen and will be decided again."""
        with self._transaction():
            self._connection.execute("DELETE FROM intents WHERE id = ?", (experiment,))

    def append(self, record: Record) -> Record:
        """Chain and store the final record; the experiment is then no longer open. Idempotent by id."""
        with self._transaction():
            row = self._connection.execute("SELECT document FROM records WHERE id = ?", (record.id,)).fetchone()
            if row is not None:
                stored = self._record(row[0])
            else:
                _text(record)  # fails here where a value has no hash
                last = self._connection.execute("SELECT hash FROM records ORDER BY sequence DESC LIMIT 1").fetchone()
                chained = record.model_copy(update={"previous_hash": last[0] if last else GENESIS})
                text = _text(chained.model_copy(update={"ledger_hash": record_hash(chained)}))
                stored = self._record(text)  # as everyone reads it from now on, to the order of its keys
                self._connection.execute(
                    "INSERT INTO records (id, branch, setup, verdict, tree, document, hash) VALUES (?,?,?,?,?,?,?)",
                    (stored.id, stored.branch, stored.setup_sha256, stored.verdict.value, stored.candidate_tree,
                     text, stored.ledger_hash),
                )  # fmt: skip
            self._connection.execute("DELETE FROM open_experiments WHERE id = ?", (record.id,))
            self._connection.execute("DELETE FROM intents WHERE id = ?", (record.id,))
        return stored

    def open_experiments(self) -> list[Record]:
        """Drafts of the experiments that were announced and have no record yet."""
        return [self._record(row[0]) for row in self._rows("SELECT draft FROM open_experiments ORDER BY id")]

    def intent(self, experiment: str) -> Intent | None:
        """The promotion that was noted for `experiment`, or None."""
        row = next(self._rows("SELECT record, old_commit FROM intents WHERE id = ?", experiment), None)
        return Intent(self._record(row[0]), row[1]) if row else None

    def promoting(self, commit: str, setup_sha256: str) -> Record | None:
        """The winner that `commit` was made from, while its promotion is noted and not recorded yet."""
        query = (
            "SELECT record FROM intents WHERE json_extract(record, '$.promotion.commit') = ?"
            " AND json_extract(record, '$.setup_sha256') = ?"
        )
        row = next(self._rows(query, commit, setup_sha256), None)
        return self._record(row[0]) if row else None

    def knows(self, experiment: str) -> bool:
        """Whether `experiment` is recorded or announced."""
        query = "SELECT 1 FROM records WHERE id = ? UNION ALL SELECT 1 FROM open_experiments WHERE id = ?"
        return any(self._rows(query, experiment, experiment))

    def engine_of(self, experiment: str) -> str | None:
        """The name of the engine that runs or ran `experiment`; None for one that is neither recorded nor announced."""
        query = (
            "SELECT json_extract(document, '$.engine.name') FROM records WHERE id = ?"
            " UNION ALL SELECT json_extract(draft, '$.engine.name') FROM open_experiments WHERE id = ?"
        )
        row = next(self._rows(query, experiment, experiment), None)
        return str(row[0]) if row else None

    def latest(self, count: int | None = None) -> list[Record]:
        """The last `count` records (all for None), most recent first."""
        query = "SELECT document FROM records ORDER BY sequence DESC LIMIT ?"
        return [self._record(row[0]) for row in self._rows(query, -1 if count is None else count)]

    def summaries(self, count: int | None = None) -> list[Summary]:
        """As `latest`, but only what a listing shows: no record is read whole, and runs that are parts are left out."""
        query = (
            "SELECT id, json_extract(document, '$.started_at'), verdict, json_extract(document, '$.metric.value'),"
            " json_extract(document, '$.trust'), json_extract(document, '$.timing.run_s'),"
            " json_extract(document, '$.usage.peak_memory_bytes'), json_extract(document, '$.description'),"
            " json_extract(document, '$.patch.files') FROM records"
            " WHERE json_extract(document, '$.part') IS NULL ORDER BY sequence DESC LIMIT ?"
        )
        found = []
        for row in self._rows(query, -1 if count is None else count):
            identity, started, verdict, value, trust, run_s, memory, description, files = row
            what = description or ", ".join(json.loads(files)[:3])
            found.append(Summary(identity, started, verdict, value, trust, run_s, memory, what))
        return found

    def get(self, prefix: str) -> Record:
        """The record whose id starts with, or ends with, `prefix`. Raises UsageError (none, several)."""
        escaped = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        query = "SELECT document FROM records WHERE id LIKE ? ESCAPE '\\' OR id LIKE ? ESCAPE '\\' LIMIT 2"
        rows = list(self._rows(query, f"{escaped}%", f"%{escaped}")) if prefix.isascii() else []
        if not prefix or not rows:
            raise UsageError(f"experiment {prefix!r}: not in the ledger", hint="arsandbox history")
        if len(rows) > 1:
            raise UsageError(f"experiment {prefix!r}: several match", hint="give more of the id")
        return self._record(rows[0][0])

    def head(self) -> str:
        """The hash of the last record; the genesis hash for an empty ledger."""
        row = next(self._rows("SELECT hash FROM records ORDER BY sequence DESC LIMIT 1"), None)
        return str(row[0]) if row else GENESIS

    def promoted(self, branch: str) -> list[Record]:
        """The records that were promoted to `branch`, oldest first."""
        rows = self._rows(
            "SELECT document FROM records WHERE branch = ? AND json_extract(document, '$.promotion.commit') IS NOT NULL"
            " ORDER BY sequence",
            branch,
        )
        return [self._record(row[0]) for row in rows]

    def documents(self) -> Iterator[str]:
        """Every record's stored text, oldest first, byte for byte."""
        for row in self._rows("SELECT document FROM records ORDER BY sequence"):
            yield str(row[0])

    def document(self, experiment: str) -> str:
        """The stored text of the record with exactly this id. Raises UsageError."""
        row = next(self._rows("SELECT document FROM records WHERE id = ?", experiment), None)
        if row is None:
            raise UsageError(f"experiment {experiment!r}: not in the ledger", hint="arsandbox history")
        return str(row[0])

    def measured(self, tree: str, setup: str) -> Record | None:
        """The latest record with a trusted value for `tree` under `setup`, or None."""
        rows = self._rows(
            "SELECT document FROM records WHERE tree = ? AND setup = ? AND verdict IN ('baseline', 'keep', 'discard')"
            " ORDER BY sequence DESC LIMIT 1",
            tree,
            setup,
        )
        row = next(rows, None)
        return self._record(row[0]) if row else None

    def judged(self, tree: str, setup: str, *, against: str) -> Record | None:
        """The first record that judged a measurement of `tree` under `setup` against the tree `against`, or None."""
        rows = self._rows(
            "SELECT document FROM records AS judging WHERE tree = ? AND setup = ?"
            " AND verdict IN ('keep', 'discard', 'pending', 'quarantine')"
            " AND json_extract(document, '$.part') IS NULL AND json_extract(document, '$.metric.value') IS NOT NULL"
            " AND EXISTS (SELECT 1 FROM records AS champion WHERE champion.tree = ?"
            " AND champion.id = json_extract(judging.document, '$.baseline.experiment'))"
            " ORDER BY sequence LIMIT 1",
            tree,
            setup,
            against,
        )
        row = next(rows, None)
        return self._record(row[0]) if row else None

    def draws(self, setup: str, *, tree: str | None = None) -> list[Record]:
        """The calibration runs under `setup`, or every unselected run of `tree`: calibrating, confirming or as the
        baseline; oldest first. Runs that gave no value are left out."""
        query = (
            "SELECT document FROM records WHERE setup = ? AND verdict = 'measured'"
            " AND json_extract(document, '$.part.role') = 'calibration' ORDER BY sequence"
        )
        if tree is None:
            return [self._record(row[0]) for row in self._rows(query, setup)]
        query = "SELECT document FROM records WHERE tree = ? AND setup = ? AND verdict IN ('baseline', 'measured')"
        return [self._record(row[0]) for row in self._rows(f"{query} ORDER BY sequence", tree, setup)]

    def parts(self, experiment: str) -> list[Record]:
        """The runs that were made to confirm `experiment`, oldest first, whatever they came to."""
        rows = self._rows(f"{_AFTER} AND json_extract(document, '$.part.of') = ?1 ORDER BY sequence", experiment)
        return [self._record(row[0]) for row in rows]

    def confirmation(self, experiment: str) -> Record | None:
        """The record that says what the confirmation of `experiment` came to, or None."""
        query = f"{_AFTER} AND json_extract(document, '$.confirms') = ?1 AND verdict != 'interrupted'"
        row = next(self._rows(query, experiment), None)
        return self._record(row[0]) if row else None

    def moved_on(self, experiment: str) -> Record | None:
        """The record of the edit of `experiment` on a newer champion, or None while it has not been measured there."""
        query = (
            f"{_AFTER} AND json_extract(document, '$.moved_from') = ?1 AND json_extract(document, '$.confirms') IS NULL"
            " AND verdict NOT IN ('interrupted', 'invalid') ORDER BY sequence"
        )
        row = next(self._rows(query, experiment), None)
        return self._record(row[0]) if row else None

    def of_loop(self, loop: str) -> list[Record]:
        """What the loop with this id has recorded, oldest first."""
        query = "SELECT document FROM records WHERE json_extract(document, '$.round.loop') = ? ORDER BY sequence"
        rows = self._rows(query, loop)
        return [self._record(row[0]) for row in rows]

    def proposed(self, branch: str) -> list[Record]:
        """What proposers made for `branch`, in loops or not, oldest first."""
        query = (
            "SELECT document FROM records WHERE branch = ?"
            " AND json_extract(document, '$.round') IS NOT NULL ORDER BY sequence"
        )
        return [self._record(row[0]) for row in self._rows(query, branch)]

    def tested(self, branch: str) -> list[tuple[str, float]]:
        """(experiment, alpha) of every confirmation that was decided on `branch`."""
        rows = self._rows(
            "SELECT json_extract(document, '$.confirms'), json_extract(document, '$.decision.alpha') FROM records"
            " WHERE branch = ? AND json_extract(document, '$.confirms') IS NOT NULL AND verdict != 'interrupted'",
            branch,
        )
        return [(str(row[0]), float(row[1] or 0.0)) for row in rows]

    def problems(self) -> Iterator[str]:
        """Every break in the chain, in order (changed, removed, reordered), and what cannot be read at all."""
        try:
            rows = self._rows("SELECT sequence, CAST(document AS BLOB) FROM records ORDER BY sequence")
            yield from chain_problems(((row[0], row[1] or b"") for row in rows), contiguous=True)
            for sequence, identity in self._rows(
                "SELECT sequence, CAST(id AS BLOB) FROM records WHERE CASE WHEN json_valid(document) THEN"
                " id IS NOT json_extract(document, '$.id')"
                " OR hash IS NOT json_extract(document, '$.ledger_hash')"
                " OR branch IS NOT json_extract(document, '$.branch')"
                " OR setup IS NOT json_extract(document, '$.setup_sha256')"
                " OR verdict IS NOT json_extract(document, '$.verdict')"
                " OR tree IS NOT json_extract(document, '$.candidate_tree') END"
            ):
                name = shown(identity.decode("utf-8", "replace"))
                yield f"record {sequence} ({name}) was changed: its columns differ from its text"
        except StateError as error:
            yield error.message

    def _holds_damage(self) -> bool:
        return any(self._rows("SELECT 1 FROM records WHERE NOT json_valid(document) LIMIT 1"))

    def _rows(self, query: str, *parameters: object) -> Iterator[tuple[Any, ...]]:
        with self._translated("read", hint="the file is damaged: arsandbox verify, or restore it from a backup"):
            yield from self._connection.execute(query, parameters)

    def _record(self, document: str) -> Record:
        from pydantic import ValidationError  # models take as long to load as all the rest of a listing

        from arsandbox.sandbox.record import Record

        try:
            return Record.model_validate_json(document)
        except ValidationError as error:
            raise StateError(f"{self._path}: a record cannot be read", hint="arsandbox verify") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:  # Ctrl-C too: roll back, then the exception goes on
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(
        self, act: str = "write", *, hint: str = "is the disk full? nothing was promoted"
    ) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise StateError(f"cannot {act} {self._path}: {error}", hint=hint) from error


def _text(record: Record) -> str:
    """What is stored of `record`. Raises StateError for values that would not be read back as they are."""
    try:
        text = canonical(record.model_dump(mode="json")).decode()
        document = json.loads(text)
        del document["ledger_hash"]
        if digest(document) != record_hash(record):
            raise ValueError("it would be read back as another")
        type(record).model_validate_json(text)
    except (ValueError, RecursionError, UsageError) as error:
        raise StateError(
            f"record {shown(record.id)} holds a value that JSON cannot: {shown(str(error))}",
            hint="integers below 2**53, finite numbers and valid Unicode only; nothing was promoted",
        ) from error
    return text
