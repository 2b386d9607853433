"""Trims mT5-shaped models with lm-vocab-trimmer (vocabtrimmer 0.0.2), and compares what luthier makes of the same.

trim_vocab.py make FOLDER TEXT: trains a unigram tokenizer with byte tokens on TEXT, writes FOLDER/model (mT5's layout, random
weights, some padding rows) and FOLDER/corpus.jsonl, lets vocabtrimmer trim it to FOLDER/theirs, and prints how many tokens
luthier has to keep to have the same ones beside those that it always keeps. trim_vocab.py small FOLDER: writes FOLDER/mt5-small, a random model of mt5-small's shape (bf16) over a tokenizer of
250,100 tokens. trim_vocab.py compare FOLDER: prints one JSON object, theirs beside FOLDER/ours.
The pinned environment is the one of `cargo xtask python-env vocabtrimmer`.
"""

import io
import json
import os
import pathlib
import sys
import types

ROWS_OF_PADDING = 12
N_TOKENS = 1500
TARGET = 400


def stub():
    """vocabtrimmer imports packages for the hub that are not needed here, one of which is gone."""

    class Anything:
        def __getattr__(self, name):
            return Anything()

    for name in ["datasets", "pandas"]:
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
    import datasets
    import huggingface_hub

    huggingface_hub.Repository = Anything

    def load_dataset(path, name=None, split=None):
        return [json.loads(line) for line in open(path)]

    datasets.load_dataset = load_dataset


def lines_of(path):
    lines = [line.strip() for line in open(path, encoding="utf-8")]
    return [line for line in lines if line]


def piece_model(lines, n_tokens):
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=n_tokens, model_type="unigram", byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
        normalization_rule_name="identity", hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def tokenizer_of(pieces):
    """As transformers' converter of T5 writes it, with the pieces of the model alone."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram(pieces, 2, byte_fallback=True))
    core.normalizer = normalizers.Strip(left=False)
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always")])
    core.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def mt5(config):
    """A random model with one embedding and a head of its own, as mT5's files have them."""
    import transformers

    # The class takes no such argument, and without it newer transformers give each stack an embedding of its own.
    config.tie_word_embeddings = False
    model = transformers.MT5ForConditionalGeneration(config)
    model.encoder.embed_tokens = model.decoder.embed_tokens = model.shared
    return model


def make(folder, text):
    import sentencepiece
    import torch
    import transformers as t

    lines = lines_of(text)
    model = sentencepiece.SentencePieceProcessor(model_proto=piece_model(lines, N_TOKENS))
    pieces = [(model.id_to_piece(at), model.get_score(at)) for at in range(model.get_piece_size())]
    tokenizer_of(pieces).save_pretrained(folder / "model")
    torch.manual_seed(7)
    config = t.MT5Config(
        vocab_size=len(pieces) + ROWS_OF_PADDING, d_model=48, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2,
        num_heads=6, feed_forward_proj="gated-gelu", decoder_start_token_id=0, tokenizer_class="PreTrainedTokenizerFast",
    )  # fmt: skip
    mt5(config).save_pretrained(folder / "model")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[: len(lines) // 3]))
    os.environ["HOME"] = str(folder)
    stub()
    import vocabtrimmer

    trimmer = vocabtrimmer.VocabTrimmer(str(folder / "model"))
    tokenizer = trimmer.tokenizer
    if not hasattr(type(tokenizer), "additional_special_tokens"):
        # Newer transformers have no such property; these models have no such tokens.
        type(tokenizer).additional_special_tokens = []
    trimmer.trim_vocab(
        language="en", path_to_save=str(folder / "theirs"), dataset=str(corpus), target_vocab_size=TARGET,
        min_frequency=2, cache_file_vocab=str(folder / "vocab.json"),
        cache_file_frequency=str(folder / "frequency.json"), overwrite=True,
    )  # fmt: skip
    special = set(tokenizer.all_special_tokens)
    chosen = json.loads((folder / "vocab.json").read_text())
    # What must stay by luthier's rules beside what vocabtrimmer keeps.
    must = {f"<0x{byte:02X}>" for byte in range(256)} | {"▁", min(pieces, key=lambda piece: piece[1])[0]}
    print(len(special | set(chosen) | must))


def small(folder):
    import torch
    import transformers as t
    from safetensors.torch import save_file

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [("▁", -2.0)]
    at = 0
    while len(pieces) < 250_000:
        word, rest = "", at
        while True:
            word, rest = letters[rest % 26] + word, rest // 26 - 1
            if rest < 0:
                break
        pieces.append((("▁" if at % 2 else "") + word, -3.0 - at / 20_000))
        at += 1
    pieces += [(f"▁<extra_id_{at}>", 0.0) for at in reversed(range(100))]
    tokenizer_of(pieces).save_pretrained(folder / "mt5-small")
    config = t.MT5Config(
        vocab_size=250_112, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, architectures=["MT5ForConditionalGeneration"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in mt5(config).state_dict().items() if "embed_tokens" not in name}
    config.save_pretrained(folder / "mt5-small")
    # Drawing 300 million numbers takes long; these repeat, by a length that divides no row.
    drawn = torch.randn(100_003, generator=torch.Generator().manual_seed(7)).mul(0.05).bfloat16()
    values = drawn.repeat(max(shape.numel() for shape in shapes.values()) // len(drawn) + 1)
    tensors = {name: values[: shape.numel()].reshape(shape).contiguous().clone() for name, shape in shapes.items()}
    save_file(tensors, folder / "mt5-small/model.safetensors", metadata={"format": "pt"})
    (folder / "words.txt").write_text("\n".join("the quick brown fox jumps over lazy dogs".split()) + "\n")


def compare(folder):
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    def opened(name):
        tensors = {}
        for file in sorted((folder / name).glob("*.safetensors")):
            tensors |= load_file(file)
        return Tokenizer.from_file(str(folder / name / "tokenizer.json")), tensors

    (before, _), (theirs, their_rows), (ours, our_rows) = opened("model"), opened("theirs"), opened("ours")
    their_tokens, our_tokens = set(theirs.get_vocab()), set(ours.get_vocab())
    chosen = json.loads((folder / "vocab.json").read_text())
    frequency = json.loads((folder / "frequency.json").read_text())
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}
    scores = {piece: score for piece, score in json.loads(before.to_str())["model"]["vocab"]}
    lowest = min(scores, key=scores.get)
    # What must stay by our rules and not by theirs.
    more = our_tokens - their_tokens
    rows_equal = True
    # With newer transformers vocabtrimmer ties the head and so loses it; its rows are those of the same tokens.
    names = [name for name in ["shared.weight", "lm_head.weight"] if name in their_rows]
    their_order = sorted(map(before.token_to_id, their_tokens))
    for name in names:
        for token in their_tokens & our_tokens:
            a = their_rows[name][their_order.index(before.token_to_id(token))]
            rows_equal &= bool((a == our_rows[name][ours.token_to_id(token)]).all())
    rest = [name for name in their_rows if name in our_rows and "shared" not in name and "lm_head" not in name]
    rest = [name for name in rest if "embed_tokens" not in name]
    rest_equal = all(bool((their_rows[name] == our_rows[name]).all()) for name in rest)
    print(json.dumps({
        "theirs": len(their_tokens), "ours": len(our_tokens), "chosen": len(chosen), "counted": len(frequency),
        "missing": sorted(their_tokens - our_tokens), "more": sorted(more - bytes_ - {"▁", lowest}),
        "rows_equal": rows_equal and bool(names), "tables": names, "rest_equal": rest_equal, "n_rest": len(rest),
    }))  # fmt: skip


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[2])
    match sys.argv[1]:
        case "make":
            make(folder, sys.argv[3])
        case "small":
            small(folder)
        case "compare":
            compare(folder)
