"""sq-eval --plot: what is drawn, and what is said where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread
from sqllm import plot

TEXT = "Once upon a time, there was a big dog. He liked to run, and he had many friends! " * 4
PEERS = [{"name": "Q4 $a$", "bits_per_weight": 4.5, "kl_divergence": 0.02, "perplexity": 3.5}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and points of peers."""
    folder = tmp_path_factory.mktemp("plot")
    (folder / "text").write_text(TEXT)
    (folder / "peers.json").write_text(json.dumps(PEERS))
    return folder


def evaluate(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env=env)


def test_picture(sq_eval: str, stories16: Path, stories4: Path, files: Path) -> None:
    out = files / "new.png"
    command = (sq_eval, stories4, stories16, files / "text", "--threads", 1)
    done = evaluate(*command, "--plot", out, "--peers", files / "peers.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model")
    assert imread(out).std() > 0.02  # something was drawn


def test_points_and_errors() -> None:
    models = [
        {"file": "a/3.sq.gguf", "bits_per_weight": 3.2, "kl_divergence": 0.3, "kl_standard_error": 0.01},
        {"file": "4.sq.gguf", "bits_per_weight": 4.4, "kl_divergence": 0.1, "kl_standard_error": 0.02},
    ]
    (axes,) = plot.draw(models, PEERS).axes
    ours, peers = (container[0].get_xydata().tolist() for container in axes.containers)
    assert ours == [[3.2, 0.3], [4.4, 0.1]]
    assert peers == [[4.5, 0.02]]
    (bars,) = axes.containers[0][2]
    assert [[y for _, y in ends] for ends in bars.get_segments()] == [
        pytest.approx([0.29, 0.31]),
        pytest.approx([0.08, 0.12]),
    ]
    assert [text.get_text() for text in axes.texts] == ["3", "4", r"Q4 \$a\$"]
    assert "KL divergence" in axes.get_ylabel()


def test_perplexity_without_a_reference() -> None:
    (axes,) = plot.draw([{"file": "m", "bits_per_weight": 4.0, "perplexity": 3.0}], PEERS).axes
    assert axes.get_ylabel() == "perplexity"
    assert axes.containers[1][0].get_xydata().tolist() == [[4.5, 3.5]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[", "no JSON"),
        ("[3]", "point 0 needs the numbers"),
        ('[{"bits_per_weight": true, "perplexity": 1}]', "point 0 needs the numbers"),
        ('{"bits_per_weight": 4, "perplexity": "1"}', "point 0 needs the numbers"),
        ('{"bits_per_weight": 4, "perplexity": NaN}', "point 0 needs the numbers"),
    ],
)
def test_points_that_are_none(
    sq_eval: str, stories16: Path, files: Path, tmp_path: Path, content: str, sentence: str
) -> None:
    """Said before anything is evaluated."""
    peers = tmp_path / "peers.json"
    peers.write_text(content)
    done = evaluate(sq_eval, stories16, files / "text", "--plot", tmp_path / "new.png", "--peers", peers)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == [peers]


def test_peers_of_another_quantity() -> None:
    with pytest.raises(plot.PlotError, match="x has no perplexity"):
        plot.draw([{"file": "m", "bits_per_weight": 4.0, "perplexity": 3.0}], [{"name": "x"}])


def test_what_is_refused(sq_eval: str, stories16: Path, files: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    command = (sq_eval, stories16, files / "text")
    done = evaluate(*command, "--plot", tmp_path / "new.png", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "sqllm.plot: A picture needs matplotlib: pip install 'sqllm[plot]'.\n",
    )
    for out in (tmp_path / "new.jpg", tmp_path / "none" / "new.png"):
        done = evaluate(*command, "--plot", out)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "expected the name of a .png file" in done.stderr
    done = evaluate(*command, "--peers", files / "peers.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected --plot" in done.stderr
