"""The peer of `cargo xtask bench encdec`: greedy decoding in CTranslate2, int8, past end tokens.

Usage: ctranslate2_greedy.py convert FOLDER CONVERTED
       ctranslate2_greedy.py time CONVERTED --source N --target N --batch N --threads N --runs N

Sources are those of `luthier bench`: id[i] = (7919 i + 1 + row) mod vocabulary. `time` prints one JSON object: seconds for
the whole batch (median of the runs after one to warm up), and the tokens of the first sequence.
"""

import argparse
import json
import statistics
import time

import ctranslate2

parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["convert", "time"])
parser.add_argument("model")
parser.add_argument("converted", nargs="?")
parser.add_argument("--vocabulary", type=int, default=32128)
for name in ["--source", "--target", "--batch", "--threads", "--runs"]:
    parser.add_argument(name, type=int, default=1)
options = parser.parse_args()

if options.what == "convert":
    converter = ctranslate2.converters.TransformersConverter(options.model)
    converter.convert(options.converted, quantization="int8")
    raise SystemExit

translator = ctranslate2.Translator(
    options.model, device="cpu", compute_type="int8", inter_threads=1, intra_threads=options.threads
)
words = ["<pad>", "</s>", "<unk>"] + [f"t{id}" for id in range(3, options.vocabulary)]
sources = [
    [words[(7919 * i + 1 + row) % options.vocabulary] for i in range(options.source)]
    for row in range(options.batch)
]


def translate():
    start = time.perf_counter()
    results = translator.translate_batch(
        sources,
        beam_size=1,
        max_input_length=0,
        min_decoding_length=options.target,
        max_decoding_length=options.target,
    )
    return time.perf_counter() - start, results


translate()
times = []
for _ in range(options.runs):
    seconds, results = translate()
    times.append(seconds)
tokens = results[0].hypotheses[0]
assert all(len(result.hypotheses[0]) == options.target for result in results), "wanted no end before the target length"
ids = {word: id for id, word in enumerate(words)}
print(json.dumps({"seconds": statistics.median(times), "token_ids": [ids[token] for token in tokens]}))
