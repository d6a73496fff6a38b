"""Sources: the passages of whole documents, exchanged in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.records import Record
from ragft_plugin.retrieval.writing import Changes, Writer
from ragft_plugin.types import Passage


def records_of(sources: Mapping[str, Sequence[Passage]]) -> dict[str, Record]:
    """Return the record of every passage of some sources.

    Raises:
        ConfigError: a passage that names another source.
        DataError: an id stands in two sources, or twice in one with different contents.
    """
    records: dict[str, Record] = {}
    for source, passages in sources.items():
        for record in map(Record.of, passages):
            if record.source != source:
                raise ConfigError(f"passage {record.id!r} has the source {record.source!r}, expected {source!r}")
            first = records.setdefault(record.id, record)
            if first.source != source:
                raise _id_twice(record.id, first.source, source)
            if first.hash != record.hash:
                raise DataError(f"the id {record.id!r} stands twice in {source!r}, with different contents")
    return records


def exchange(
    writer: Writer,
    catalogue: Catalogue,
    records: Mapping[str, Record],
    digests: Mapping[str, str | None],
    *,
    partial: bool = False,
) -> Changes:
    """Make these records all there is of their sources.

    Args:
        writer: started.
        catalogue: what there is.
        records: by id; those of ``records_of``.
        digests: of every source, None to forget it.
        partial: leave what else there is of the sources.

    Raises:
        DataError: an id belongs to another source already.
    """
    before = {id: found for source in digests for id, found in catalogue.rows_of_source(source).items()}
    live = catalogue.live(list(records))
    strangers = [live[id][0] for id in records if id in live and id not in before]
    for passage in catalogue.passages(strangers).values():
        raise _id_twice(passage.id, passage.metadata.get("source"), str(records[passage.id].source))
    gone = {} if partial else {row: hash for id, (row, hash) in before.items() if id not in records}
    return writer.replace(records, live, gone, digests)


def _id_twice(id: str, first: object, second: str) -> DataError:
    return DataError(f"the id {id!r} stands in {first!r} and in {second!r}; ids must differ between sources")
