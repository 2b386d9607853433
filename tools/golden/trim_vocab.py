"""Writes golden/trim-vocab: a small unigram tokenizer, texts, and the tokens that lm-vocab-trimmer keeps for them.

Run `python tools/golden/trim_vocab.py golden` at the repository's root with vocabtrimmer 0.0.2 on transformers 5.23.0,
tokenizers 0.23.3 and sentencepiece 0.2.3.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
import trim_vocab  # noqa: E402

TEXT = pathlib.Path("models/builtin/text/northanger_abbey_1_24.txt")
N_TOKENS, TARGET, LINES = 700, 150, 60

if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1]) / "trim-vocab"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        text = folder / "text.txt"
        text.write_text("\n".join(trim_vocab.lines_of(TEXT)[: 3 * LINES]) + "\n")
        trim_vocab.N_TOKENS, trim_vocab.TARGET = N_TOKENS, TARGET
        trim_vocab.make(folder, text)
        chosen = json.loads((folder / "vocab.json").read_text())
        frequency = json.loads((folder / "frequency.json").read_text())
        counts = {token: frequency[str(at)] for token, at in chosen.items()}
        (out / "chosen.json").write_text(json.dumps(counts, ensure_ascii=False, indent=0) + "\n")
        for name in ["model/tokenizer.json", "model/tokenizer_config.json", "corpus.jsonl"]:
            shutil.copy(folder / name, out / os.path.basename(name))
