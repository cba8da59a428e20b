"""What people watch during a run, read back from the event files; the run walks through windows of one shard."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import launch

SCALARS = {
    *(f"loss/{term}" for term in ("total", "t2i", "i2t", "syn", "mlm", "disc", "corr")),
    *(f"rank/true_above_{what}" for what in ("image", "caption", "synthetic")),
    *(f"filter/{stage}" for stage in ("written", "not_annotated", "distinct", "false_of_image", "kept")),
    *("disc/accuracy_replaced", "disc/accuracy_kept", "corr/accuracy"),
    *("lr", "gradient_norm", "speed/true_pairs_per_s", "speed/pair_forwards_per_s", "memory/gib"),
}


def test_everything_named_is_written(world: Path, tmp_path: Path) -> None:
    shard = max(path.stat().st_size for path in world.glob("train-*.tar"))
    window = [f"data.max_gib={1.5 * shard / 2**30}", "data.window_steps=3"]
    settings = [*launch.TINY, *launch.TAGS_DC, *window, "log.panel_every=3"]
    output = launch.train(world, tmp_path / "run", "ds_configs/zero1.json", settings, ranks=2)
    assert "30 images" in output, "one of the two shards is in memory at a time"

    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= SCALARS
    assert set(tags["histograms"]) >= {"score/synthetic_minus_true", "score/true", "score/hard_image", "score/synthetic"}
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5, 6]
    panels = events.Tensors("written negatives/text_summary")
    assert [panel.step for panel in panels] == [3, 6]
    text = panels[0].tensor_proto.string_val[0].decode()
    assert "s(I, T)" in text and "train-" in text and "→" in text

    # filters only ever take away, and 2 maskings x 3 refills are written for each caption
    for row in launch.rows(tmp_path / "run"):
        left = [row[f"filter/{stage}"] for stage in ("written", "not_annotated", "distinct", "false_of_image", "kept")]
        assert left[0] == 6 and left == sorted(left, reverse=True)

    examples = json.loads((tmp_path / "run" / "examples.json").read_text())
    assert set(examples["scores"]) >= {"true", "hard_image", "hard_caption", "synthetic"}
    assert len(examples["negatives"]) == 2
    words = [word for example in examples["negatives"] for written in example["written"] for word in written["words"]]
    assert any(word["replaced"] for word in words) and all(0 <= word["suspicion"] <= 1 for word in words)
