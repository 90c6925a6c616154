"""Frames to files: H.264 videos and PNG."""

import itertools
import os
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from isaacrl.errors import UserError
from isaacrl.files import write_atomic


def write_video(frames: Iterable[np.ndarray], path: str | Path, fps: float) -> int:
    """Write frames, uint8 [H, W, 3], as an H.264 mp4 that browsers play; returns their number. Odd edges are cropped.

    Raises:
        UserError: ffmpeg is missing or fails.
    """
    import imageio_ffmpeg

    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("write_video: no frames")
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
    path = Path(path)
    part = path.with_name(f".{path.stem}.part.mp4")
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6g}", "-i", "-"]
    h264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"]
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *raw, *h264, str(part)]
        count = _feed(command, (f[:height, :width] for f in itertools.chain([first], frames)))
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: the video could not be written: {last_line(error)}. `isaacrl doctor` says what ffmpeg it found."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _feed(command: list[str], frames: Iterable[np.ndarray]) -> int:
    """Run a program with frames as its input; their number. Raises: RuntimeError with what it says where it fails."""
    count = 0
    # In a group of its own Ctrl+C does not reach it. imageio_ffmpeg's own writer would fork, which the kernel refuses
    # to a process whose thousands of simulations have reserved more memory than there is.
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0) as program,
    ):
        assert program.stdin
        try:
            for frame in frames:
                program.stdin.write(np.ascontiguousarray(frame))
                count += 1
        except BrokenPipeError:
            pass  # it has ended, and said why
        except BaseException:
            program.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                program.stdin.close()
        if program.wait():
            log.seek(0)
            raise RuntimeError(log.read().decode(errors="replace"))
    return count


def write_png(frame: np.ndarray, path: str | Path) -> None:
    """Write one frame, uint8 [H, W, 3], as a PNG. Raises: UserError where the disk refuses."""
    height, width, _ = frame.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), frame.reshape(height, width * 3)], axis=1)  # 0: no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    try:
        write_atomic(path, b"\x89PNG\r\n\x1a\n" + data)
    except OSError as e:
        raise UserError(f"{path}: the picture could not be written ({e.strerror or e}); make room") from e


def last_line(error: BaseException) -> str:
    """What libraries and programs say last of an error is what counts."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
