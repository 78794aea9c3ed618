"""A Parquet file as a table. What a column is declared as bounds what it can be found to be: a text stays text."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

from headway.worker.processors.table_query import Source, connect, damaged_parquet, plain_errors

MAGIC: Final = b"PAR1"

_KINDS: Final = (
    (("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"), {"integer"}),
    (("FLOAT", "DOUBLE", "DECIMAL"), {"number"}),
    (("BOOLEAN",), {"boolean"}),
    (("DATE",), {"date"}),
    (("TIMESTAMP",), {"timestamp_utc", "timestamp"}),
    (("TIME",), {"time"}),
)


def parquet_source(path: Path, memory_bytes: int, nulls: tuple[str, ...] | None) -> Source:
    """Raises BadInput for a file that is damaged."""
    with path.open("rb") as file:
        file.seek(-4, 2)
        if file.read() != MAGIC:
            raise damaged_parquet()
    with closing(connect(memory_bytes, [str(path)])) as connection, plain_errors():
        given = {"path": str(path)}
        found = connection.execute("DESCRIBE SELECT * FROM read_parquet($path)", given).fetchall()
        (rows,) = connection.execute("SELECT sum(num_rows) FROM parquet_file_metadata($path)", given).fetchone()
    columns = ", ".join(f"{_text(n, str(kind))} AS c{n}" for n, (_, kind, *_) in enumerate(found))
    named = ", ".join(f"c{n}" for n in range(len(found)))
    sql = f"(SELECT {columns} FROM read_parquet($path) AS given({named}))"  # noqa: S608 - names and types are ours
    only = {n: _kinds(str(kind)) for n, (_, kind, *_) in enumerate(found)}
    return Source(path, sql, {}, tuple(str(name) for name, *_ in found), int(rows), nulls=nulls, only=only)


def _text(n: int, kind: str) -> str:
    if kind == "TIMESTAMP WITH TIME ZONE":
        return f"CAST(c{n} AT TIME ZONE 'UTC' AS VARCHAR) || 'Z'"
    return f"CAST(c{n} AS VARCHAR)"


def _kinds(kind: str) -> frozenset[str]:
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return frozenset()
    plain = kind.partition("(")[0].partition(" ")[0].removesuffix("_NS").removesuffix("_MS").removesuffix("_S")
    return next((frozenset(kinds) for names, kinds in _KINDS if plain in names), frozenset())
