"""After a resume the live files hold each step once."""
import json

from pipelines.training.run_directory import LineWriter, read_lines, supersede


def write(path, lines):
    writer = LineWriter(path)
    for line in lines:
        writer.write(line)
    writer.close()


def test_lines_beyond_the_checkpoint_move_aside(tmp_path):
    write(tmp_path / "metrics.jsonl", [{"attempt": 1, "step": s, "loss": 1.0} for s in range(1, 8)])
    write(tmp_path / "samples" / "rank-0.jsonl", [{"step": s, "position": s} for s in range(1, 8)])
    with open(tmp_path / "metrics.jsonl", "a") as torn:
        torn.write('{"attempt": 1, "st')
    supersede(tmp_path, 5)
    write(tmp_path / "metrics.jsonl", [{"attempt": 2, "step": s, "loss": 1.0} for s in range(6, 9)])
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 9))
    assert [line["step"] for line in read_lines(tmp_path / "samples" / "rank-0.jsonl")] == list(range(1, 6))
    for name in ("metrics.jsonl", "samples/rank-0.jsonl"):
        moved = (tmp_path / "superseded" / name).read_text().splitlines()
        assert [json.loads(line)["step"] for line in moved] == [6, 7]
