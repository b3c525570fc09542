"""What libjpeg's decoding and OpenCV's resizing take, and how true they are: `python -m benchmarks.decoding`.

Two photographs of 640x427 pixels (scikit-learn's), as JPEGs of quality 85, on one thread; the least time of many turns.
Behind `decode_image` and `resize` in ashnets/processing.py; some seconds.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from numpy import ndarray
from PIL import Image
from sklearn.datasets import load_sample_images

TURNS = 25
SIZE = 224
WAYS = {"bilinear": cv2.INTER_LINEAR, "area averaging": cv2.INTER_AREA}


def least_ms(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least CPU time of each call; the calls take turns."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(TURNS):
        for name, call in calls.items():
            began = time.process_time()
            call()
            least[name] = min(least[name], 1000 * (time.process_time() - began))
    return least


def likeness(image: ndarray, true: ndarray) -> float:
    """PSNR in dB."""
    return float(10 * np.log10(255**2 / ((image.astype(float) - true) ** 2).mean()))


def decoding(photographs: list[ndarray]) -> None:
    """Print a line for every size that libjpeg can decode to."""
    data = [simplejpeg.encode_jpeg(photograph, 85, "RGB", "420") for photograph in photographs]
    height, width = photographs[0].shape[:2]

    def decode(eighths: int) -> Callable[[], object]:
        least = -(-height * eighths // 8), -(-width * eighths // 8)
        return lambda: [simplejpeg.decode_jpeg(d, "RGB", min_height=least[0], min_width=least[1]) for d in data]

    for name, ms in least_ms({f"{k}/8": decode(k) for k in range(8, 0, -1)}).items():
        print(f"decode to {name}  {ms / len(data):6.2f} ms")


def placing(photographs: list[ndarray]) -> None:
    """Print what decoding to so many bytes behind a multiple of 32 takes, with one resizing of the result behind it."""
    sides = {"640x427": photographs, "256x256": [p[:256, :256] for p in photographs]}
    for name, images in sides.items():
        data = [simplejpeg.encode_jpeg(np.ascontiguousarray(image), 85, "RGB", "420") for image in images]
        room = np.empty(images[0].size + 63, dtype=np.uint8)
        aligned = -room.ctypes.data % 32

        def both(behind: int, data: list[bytes] = data, place: ndarray = room[aligned:]) -> list[ndarray]:
            decoded = [simplejpeg.decode_jpeg(d, "RGB", buffer=place[behind:]) for d in data]
            return [cv2.resize(image, (SIZE, SIZE)) for image in decoded]

        for behind, ms in least_ms({k: lambda k=k: both(k) for k in (0, 16)}).items():
            print(f"decode {name} to {behind:2} behind a multiple of 32, resize  {ms / len(data):6.3f} ms")


def resizing(photographs: list[ndarray], shrinks: float) -> None:
    """Print the time of both ways to shrink a square so many times to SIZE, and how near to Lanczos' they come."""
    side = round(shrinks * SIZE)
    squares = [np.ascontiguousarray(photograph[:side, :side]) for photograph in photographs]
    true = [np.asarray(Image.fromarray(s).resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for s in squares]

    def shrink(way: int) -> list[ndarray]:
        return [cv2.resize(square, (SIZE, SIZE), interpolation=way) for square in squares]

    times = least_ms({name: lambda way=way: shrink(way) for name, way in WAYS.items()})
    for name, way in WAYS.items():
        psnr = np.mean([likeness(image, t) for image, t in zip(shrink(way), true, strict=True)])
        print(f"shrink {shrinks:.2f} times, {name:14}  {times[name] / len(squares):6.2f} ms  {psnr:5.1f} dB")


def main() -> None:
    """Print the three tables."""
    cv2.setNumThreads(1)
    photographs = load_sample_images().images
    decoding(photographs)
    placing(photographs)
    for shrinks in (1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 1.9):
        resizing(photographs, shrinks)


if __name__ == "__main__":
    if sys.argv[1:]:
        print("usage: python -m benchmarks.decoding", file=sys.stderr)
        sys.exit(2)
    main()
