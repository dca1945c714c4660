"""Greedy generation from token prompts."""

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
) -> list[str]:
    """Continues each prompt greedily with a KV cache until its end of turn, and decodes what is new.

    Prompts are padded on the left. The model stops at the tokenizer's EOS and at any other end that its
    own generation config names (Llama-3 ends a turn with <|eot_id|>). It also stops where the longest
    prompt of the batch reaches the model's context.
    """
    width = max(len(prompt) for prompt in prompts)
    device = model.get_input_embeddings().weight.device
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        max_new_tokens = max(1, min(max_new_tokens, context - width))
    ends = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.eos_token_id,
    )
    training, own = model.training, model.generation_config
    model.eval()
    # generate() fills what is not set from the model's own (a repetition penalty, say), which must not count.
    model.generation_config = greedy
    try:
        output = model.generate(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), generation_config=greedy
        )
    finally:
        model.train(training)
        model.generation_config = own
    return [text.strip() for text in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]
