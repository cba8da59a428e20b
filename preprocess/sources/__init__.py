"""The sources of tagsds-pack by name. A further source is one file here and one line below (docs/extend/source.md)."""

from preprocess.sources import butd_tsv, coco, scan_npy, uniter_lmdb, world
from preprocess.sources.command import SourceCommand

SOURCES: dict[str, SourceCommand] = {
    "world": world.COMMAND,
    "coco": coco.COMMAND,
    "butd-tsv": butd_tsv.COMMAND,
    "uniter-lmdb": uniter_lmdb.COMMAND,
    "scan-npy": scan_npy.COMMAND,
}
