"""Makes golden/prune/bert.safetensors: as prune.py does for the others, for the encoder of bert.py, whose norms take the mean
off and whose heads share out the width. Run `python tools/golden/prune_bert.py golden` behind bert.py.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from models import tokens
from prune import WINDOW, WINDOWS, l2, top

LAYERS, HIDDEN, FFN, HEADS = 1, 21, 30, 3


def importances(model, ids):
    scores, heads = {}, model.config.num_attention_heads
    keep = lambda key, value: scores.setdefault(key, []).append(value.detach())

    def matrix(name):
        def hook(_, inputs):
            x, weight = inputs[0][0], name + ".weight"
            keep(f"inputs.{weight}", x.square().sum(0).sqrt())
            if name.endswith("attention.output.dense"):
                norms = x.reshape(len(x), heads, -1).norm(dim=-1).mean(0)
                keep(f"heads.{weight}", norms)
                keep(f"groups.{weight}", norms)
            elif name.endswith("output.dense"):
                keep(f"neurons.{weight}", x.abs().mean(0))

        return hook

    def norm(name):
        def hook(_, inputs, output):
            x = inputs[0][0]
            x = x - x.mean(-1, keepdim=True)
            keep(f"channels.{name}.weight", output[0].abs().mean(0))
            keep(f"energy.{name}.weight", (x.square() / x.square().sum(-1, keepdim=True)).sum(0))
            keep(f"shift.{name}.weight", (x / x.square().mean(-1, keepdim=True).sqrt()).sum(0))

        return hook

    def layer(number):
        def hook(_, inputs, output):
            y = output[0] if isinstance(output, tuple) else output
            keep(f"layer.{number}", torch.cosine_similarity(inputs[0][0], y.reshape(inputs[0].shape)[0], dim=-1).sum())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith("decoder"):
            module.register_forward_pre_hook(matrix(name))
        elif name.endswith("LayerNorm"):
            module.register_forward_hook(norm(name))
    for number, module in enumerate(model.bert.encoder.layer):
        module.register_forward_hook(layer(number))
    with torch.no_grad():
        for window in ids:
            model(input_ids=window[None])
    n_tokens = ids.numel()
    influence = [1 - sum(scores.pop(f"layer.{at}")) / n_tokens for at in range(model.config.num_hidden_layers)]
    mean = lambda key: key.startswith(("energy.", "shift."))
    scores = {key: sum(values) / n_tokens if mean(key) else l2(values) for key, values in scores.items()}
    return scores | {"block_influence.encoder": torch.stack(influence)}


def pruned(model, scores):
    old = model.config
    layers = top(scores["block_influence.encoder"], LAYERS).tolist()
    channel_scores = scores["channels.bert.embeddings.LayerNorm.weight"].clone()
    for at in layers:
        for norm in ("attention.output", "output"):
            channel_scores += scores[f"channels.bert.encoder.layer.{at}.{norm}.LayerNorm.weight"]
    c = top(channel_scores, HIDDEN)
    config = BertConfig.from_dict(old.to_dict())
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = LAYERS, HIDDEN, FFN
    config.num_attention_heads = HEADS
    config.layer_norm_eps = old.layer_norm_eps * old.hidden_size / HIDDEN
    model_of = BertForMaskedLM(config).eval()
    source, target = model.state_dict(), model_of.state_dict()
    width = old.hidden_size // old.num_attention_heads

    def norm(to, name):
        energy, shift = scores[f"energy.{name}.weight"], scores[f"shift.{name}.weight"][c].mean()
        factor = (energy[c].sum() / energy.sum() * old.hidden_size / HIDDEN - shift**2).sqrt()
        weight, bias = source[f"{name}.weight"][c], source[f"{name}.bias"][c]
        target[f"{to}.weight"], target[f"{to}.bias"] = weight * factor, bias + weight * shift

    def linear(to, name, rows, columns):
        target[f"{to}.weight"] = source[f"{name}.weight"][rows][:, columns]
        target[f"{to}.bias"] = source[f"{name}.bias"][rows]

    for kind in ("word", "position", "token_type"):
        name = f"bert.embeddings.{kind}_embeddings.weight"
        target[name] = source[name][:, c]
    target["cls.predictions.decoder.weight"] = target["bert.embeddings.word_embeddings.weight"]
    for name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):
        target[name] = source[name]
    norm("bert.embeddings.LayerNorm", "bert.embeddings.LayerNorm")
    for to, at in enumerate(layers):
        to, at = f"bert.encoder.layer.{to}", f"bert.encoder.layer.{at}"
        heads = top(scores[f"heads.{at}.attention.output.dense.weight"], HEADS).tolist()
        rows = torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])
        for projection in ("query", "key", "value"):
            linear(f"{to}.attention.self.{projection}", f"{at}.attention.self.{projection}", rows, c)
        linear(f"{to}.attention.output.dense", f"{at}.attention.output.dense", c, rows)
        neurons = top(scores[f"neurons.{at}.output.dense.weight"], FFN)
        linear(f"{to}.intermediate.dense", f"{at}.intermediate.dense", neurons, c)
        linear(f"{to}.output.dense", f"{at}.output.dense", c, neurons)
        for part in ("attention.output", "output"):
            norm(f"{to}.{part}.LayerNorm", f"{at}.{part}.LayerNorm")
    linear("cls.predictions.transform.dense", "cls.predictions.transform.dense", c, c)
    norm("cls.predictions.transform.LayerNorm", "cls.predictions.transform.LayerNorm")
    model_of.load_state_dict(target)
    ids = tokens(7, 1, 9)
    with torch.no_grad():
        return {"pruned_ids": ids, "pruned_logits": model_of(input_ids=ids).logits}


def main(root):
    model = BertForMaskedLM.from_pretrained(root / "bert", dtype=torch.float32).eval()
    ids = tokens(206, WINDOWS, WINDOW)
    scores = importances(model, ids)
    golden = scores | {"ids": ids} | pruned(model, scores)
    golden = {
        key: (value.to(torch.int32) if value.dtype == torch.int64 else value.float()).contiguous()
        for key, value in golden.items()
    }
    save_file(golden, root / "prune" / "bert.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
