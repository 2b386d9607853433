"""mistralrs_decode.py FILE.gguf PROMPT_TOKENS NEW_TOKENS

How fast mistral.rs reads a prompt and decodes, as it says itself. It takes text alone, so that the prompt is of about as many
tokens: what it counted is what the speed is made of. RAYON_NUM_THREADS is its number of threads.
"""

import json
import os
import sys

from mistralrs import CompletionRequest, Runner, Which


def main():
    path, prompt_tokens, new_tokens = sys.argv[1], *map(int, sys.argv[2:4])
    folder, name = os.path.split(os.path.abspath(path))
    runner = Runner(which=Which.GGUF(quantized_model_id=folder, quantized_filename=name))

    def run(words):
        # Different words each time: it keeps the state of prompts that it has seen.
        prompt = " ".join(words)
        request = CompletionRequest(model="default", prompt=prompt, max_tokens=new_tokens, temperature=0.0)
        return runner.send_completion_request(request).usage

    run(["warm"])
    long = run([str(at % 10) for at in range(prompt_tokens // 2)])
    short = run(["The"])
    result = {
        "prefill": long.avg_prompt_tok_per_sec,
        "decode after a prompt": long.avg_compl_tok_per_sec,
        "decode from nothing": short.avg_compl_tok_per_sec,
        "prompt_tokens": long.prompt_tokens,
    }
    # It prints on standard output itself: ours is the last line.
    print(json.dumps(result))


main()
