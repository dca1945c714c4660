"""Models and rows that every case of a comparison shares."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dipo_pl.batch import Encoded


@dataclass(frozen=True)
class Size:
    """A Llama with random weights and the rows of a step.

    Attributes:
        time: tokens of a row.
        prompts: tokens of a row that are prompt; None is a third.
        rows: in each set.
        lora: only cases that train adapters are run.
        checkpointing: activations are recomputed in the backward pass.
    """

    model: str
    vocabulary: int
    time: int
    width: int = 384
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 6
    intermediate: int = 1024
    tied: bool = False
    prompts: int | None = None
    rows: int = 8
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    lora: bool = False
    checkpointing: bool = False

    @property
    def prompt(self) -> int:
        return self.time // 3 if self.prompts is None else self.prompts

    @property
    def set_logits(self) -> int:
        """Bytes of the float32 logits of one set, prompts included."""
        return 4 * self.rows * self.time * self.vocabulary

    def tiny(self) -> Self:
        """The same kind of step at a size that costs nothing."""
        return replace(
            self, vocabulary=64, time=12, prompts=4, width=32, layers=2, heads=2, key_value_heads=2, intermediate=32,
            rows=2,
        )  # fmt: skip

    def policy(self) -> LlamaForCausalLM:
        """The same weights each time, in train mode."""
        config = LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.key_value_heads,
            max_position_embeddings=self.time, tie_word_embeddings=self.tied, use_cache=False, dtype=self.dtype,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlamaForCausalLM._from_config(config, dtype=self.dtype)
        if self.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()

    def sequences(self, sections: Sequence[str]) -> dict[str, list[Encoded]]:
        """Rows by section. Those that go with forget rows share their prompts."""
        answers = self.time - self.prompt
        drawn = {name: _tokens(name, self.rows, answers, self.vocabulary) for name in sections}
        prompts = {
            name: _tokens(f"{name} prompts", self.rows, self.prompt, self.vocabulary)
            for name in ("forget", "retain")
        }
        return {
            name: [
                Encoded((*prompt, *answer), self.prompt)
                for prompt, answer in zip(prompts.get(name, prompts["forget"]), drawn[name], strict=True)
            ]
            for name in sections
        }

    @property
    def layer_weights(self) -> list[tuple[int, int]]:
        """[out, in] of the matrices of a layer."""
        kept = self.key_value_heads * self.width // self.heads
        square, up = (self.width, self.width), (self.intermediate, self.width)
        return [square, (kept, self.width), (kept, self.width), square, up, up, up[::-1]]

    def flops(self, sets: int, lora: bool) -> float:
        """Multiplications and additions of a training step by the matrices that it needs.

        Two a weight and token forward and four backward, two of these for the weight's gradient, which a
        weight that LoRA freezes has not; the head only where an answer is predicted. Attention scores, recomputed
        activations and the reference are not counted.
        """
        layer = sum(out * into for out, into in self.layer_weights)
        tokens = sets * self.rows * self.time
        answers = sets * self.rows * (self.time - self.prompt)
        pairs = self.layers * layer * tokens + self.width * self.vocabulary * answers
        return (4 if lora else 6) * pairs


def _tokens(seed: str, rows: int, length: int, vocabulary: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(vocabulary) for _ in range(length)) for _ in range(rows)]


SMALL = Size("384 wide, 6 layers", vocabulary=32_000, time=96)
# Rows as long as TOFU's are on average with SmolLM2's tokenizer and chat template.
SMOLLM2 = Size("SmolLM2-135M", vocabulary=49_152, time=84, prompts=47, width=576, layers=30, heads=9,
               key_value_heads=3, intermediate=1536, tied=True)  # fmt: skip
ON_GPU = {
    "1B": Size("1B", vocabulary=128_256, time=256, width=2048, layers=16, heads=32, key_value_heads=8,
               intermediate=8192, tied=True, dtype=torch.bfloat16, device="cuda"),
    "8B": Size("8B, LoRA", vocabulary=128_256, time=512, width=4096, layers=32, heads=32, key_value_heads=8,
               intermediate=14_336, dtype=torch.bfloat16, device="cuda", lora=True, checkpointing=True),
}  # fmt: skip
