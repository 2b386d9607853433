"""Makes golden/bert*/: tiny random BERTs in the forms that files have, and what the reference computes with them.

`bert`: BertForMaskedLM, heads of an odd width, a padded batch. `bert-old`: BertForPreTraining as files of 2019 have it, with
gamma and beta, a repeated head and no model_type. `bert-plain`: BertModel without a prefix, and its states. Run
`python tools/golden/bert.py golden` with the versions of requirements.txt.
"""

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from models import TOKENS, VOCABULARY, backward, randomize, tokens, write

SIZES = dict(vocab_size=VOCABULARY, num_hidden_layers=2, attn_implementation="eager", max_position_embeddings=23)


def masked(ids, seed):
    """Labels of a third of the tokens, whose places hold the mask token (4) in the input."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(ids.shape, generator=generator) < 0.34
    return torch.where(chosen, 4, ids), torch.where(chosen, ids, -100)


def masked_tokens(model, seed):
    randomize(model, seed)
    ids, targets = masked(tokens(seed + 1, 2, TOKENS, low=5), seed + 2)
    logits = model(input_ids=ids)[0]
    golden = {"ids": ids, "targets": targets, "logits": logits, **backward(model, logits, targets)}
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask)[0]
    return golden | {"mask": mask, "padded_logits": padded * mask[..., None]}


def main(root):
    config = BertConfig(**SIZES, hidden_size=35, num_attention_heads=5, intermediate_size=44, layer_norm_eps=1e-5)
    model = BertForMaskedLM(config)
    golden = masked_tokens(model, 111)
    write(root / "bert", model.config.to_dict() | dict(architectures=["BertForMaskedLM"]), dict(model.named_parameters()), golden)

    config = BertConfig(**SIZES, hidden_size=36, num_attention_heads=3, intermediate_size=28, hidden_act="relu")
    model = BertForPreTraining(config)
    golden = masked_tokens(model, 121)
    weights = dict(model.named_parameters())
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    rename = lambda tensors: {old(name): tensor for name, tensor in tensors.items()}
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    keys += ("max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps")
    config = {key: getattr(model.config, key) for key in keys}
    write(root / "bert-old", config, rename(weights), rename(golden))

    config = BertConfig(**SIZES, hidden_size=32, num_attention_heads=4, intermediate_size=20, hidden_act="gelu_new", type_vocab_size=1)
    model = randomize(BertModel(config), 131)
    ids = tokens(132, 2, TOKENS)
    golden = {"ids": ids, "states": model(input_ids=ids).last_hidden_state}
    weights = dict(model.named_parameters()) | {"embeddings.position_ids": torch.arange(23)[None]}
    write(root / "bert-plain", model.config.to_dict() | dict(architectures=["BertModel"]), weights, golden)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
