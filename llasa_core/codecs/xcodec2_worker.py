"""The PyPI package xcodec2 behind a pipe, run by the interpreter of an environment of its own.

It imports nothing of this repository. Asked on standard input, it answers on standard output, one
line of JSON and then the bytes it announces: {"do": "encode" | "decode", "bytes": n} and float32
samples at 16 kHz or int32 codes; {"bytes": n} and int32 codes or float32 samples, or
{"error": why}.
"""

import contextlib
import json
import os
import sys

import numpy as np


def load(source: str, device: str):
    """The model, every weight of it from the checkpoint."""
    # This folder, the first place where a script's imports are looked for, has an xcodec2 too
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != here]
    import torch
    from xcodec2.modeling_xcodec2 import XCodec2Model

    model, report = XCodec2Model.from_pretrained(source, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ValueError(
                f"{source}: {problem.replace('_', ' ')}: {sorted(report[problem])[:3]}"
            )
    return torch, model.eval().to(device)


def answer(torch, model, device: str, asked: dict, content: bytes) -> np.ndarray:
    """int32 codes (F,) of a wave, or the float32 wave (F * 320,) of codes."""
    with torch.no_grad():
        if asked["do"] == "encode":
            wave = torch.from_numpy(np.frombuffer(content, np.float32).copy())
            codes = model.encode_code(input_waveform=wave[None].to(device))
            return codes[0, 0].cpu().numpy().astype(np.int32)[: len(wave) // 320]
        codes = torch.from_numpy(np.frombuffer(content, np.int32).astype(np.int64))
        return model.decode_code(codes[None, None].to(device))[0, 0].cpu().numpy()


def main() -> None:
    source, device = sys.argv[1:3]
    out, ask = sys.stdout.buffer, sys.stdin.buffer

    def tell(what: dict, content: bytes = b"") -> None:
        out.write(json.dumps(what).encode() + b"\n" + content)
        out.flush()

    try:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print
            torch, model = load(source, device)
    except Exception as error:
        tell({"error": f"{type(error).__name__}: {error}"})
        return
    tell({"ready": True})
    while line := ask.readline():
        asked = json.loads(line)
        content = ask.read(asked["bytes"])
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = answer(torch, model, device, asked, content).tobytes()
        except Exception as error:
            tell({"error": f"{type(error).__name__}: {error}"})
            continue
        tell({"bytes": len(found)}, found)


if __name__ == "__main__":
    main()
