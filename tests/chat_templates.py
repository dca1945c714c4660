"""Chat templates in the shapes of published ones, written here in few words, and what each writes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from dipo_pl.models.tokenizer import train_tokenizer

QUESTION = "Who is Mira Okafor?"
MARKERS = (
    "<|im_start|> <|im_end|> <|im_sep|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|begin_of_text|> <start_of_turn> "
    "<end_of_turn> [INST] [/INST] <|user|> <|assistant|> <|system|> <|end|> <|endoftext|> <|User|> <|Assistant|> "
    "<|start_of_role|> <|end_of_role|> <|turn|> <|turn_end|> <|chatbot|> <|channel|> <|message|> <|start|> <|return|> "
    "<think> </think>"
).split()


@dataclass(frozen=True)
class Shape:
    """A template, and what it makes of an answer.

    Attributes:
        template: its text.
        writes: the answer as the template writes it.
        extra: text between generation prompt and answer.
        closing: text that is trained after the answer; EOS if it is empty.
        variables: arguments of the template.
        dated: text that stands for `strftime_now(...)` with the fixed date.
    """

    template: str
    writes: Callable[[str], str] = str
    extra: str = ""
    closing: str = "</s>"
    variables: dict[str, Any] = field(default_factory=dict)
    dated: tuple[str, str] | None = None


def turns(each: str, generation: str, before: str = "", after: str = "") -> str:
    """Return a template that writes `each` for every message m, and `generation` for a model to answer."""
    loop = "{% for m in messages %}" + each + "{% endfor %}"
    return before + loop + after + "{% if add_generation_prompt %}" + generation + "{% endif %}"


CHATML = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
CHATML_PROMPT = "{{ '<|im_start|>assistant\n' }}"
CHATML_MARKED = (
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
)
LLAMA3 = (
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content']|trim + '<|eot_id|>' }}"
)
LLAMA3_PROMPT = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
GEMMA = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content|trim + '<end_of_turn>\n' }}"
)
GEMMA_PROMPT = "{{ '<start_of_turn>model\n' }}"
MISTRAL = (
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}ANSWER"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}"
)
PHI = "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
THINKING = """{%- for m in messages %}
    {%- if m.role == 'assistant' and '</think>' in m.content %}
        {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set said = m.content.split('</think>')[-1].lstrip('\n') %}
    {%- else %}
        {%- set thought, said = '', m.content %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and loop.last %}
        {{- '<think>\n' + thought + '\n</think>\n\n' }}
    {%- endif %}
    {{- said + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
R1 = turns(
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}",
    "{{ '<|Assistant|><think>\n' }}",
    "{{ bos_token }}",
)
PARTS = (
    "{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}{{ '<image>' }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
)
EITHER = (
    "{{ '<start_of_turn>' + m.role + '\n' }}{% if m.content is string %}{{ m.content|trim }}{% else %}"
    "{% for part in m.content %}{{ part.text|trim }}{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}"
)
HARMONY = (
    "{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
)
TODAY = "{{ '<|system|>\nToday is ' + date_string + '\n' }}"
DATED_SYSTEM = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}{% if tools is not none and tools %}"
    "{{ 'Environment: ipython\n' }}{% for tool in tools %}{{ tool|tojson(indent=4) + '\n' }}{% endfor %}{% endif %}"
    "{{ 'Today Date: ' + date_string + '\n\n<|eot_id|>' }}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
GRANITE_DATE = "strftime_now('%B %d, %Y')"
GRANITE = (
    f"{{{{ '<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday\\'s Date: ' + {GRANITE_DATE}"
    " + '.\nYou are Granite.</s>\n' }}"
)
TOOL = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": {}}}
SMOLLM3 = (
    "{% set mode = '/no_think' if enable_thinking is defined and not enable_thinking else '/think' %}"
    "{{ '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') "
    "+ '\nReasoning Mode: ' + mode + '<|im_end|>\n' }}"
)
SMOLLM3_TURN = (
    "{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' }}"
    "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}{{ m.content.lstrip('\n') + '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
)
SMOLLM3_PROMPT = CHATML_PROMPT + "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}"
SMOLLM3_DATE = ("strftime_now('%d %B %Y')", "'10 April 2025'")

strip = str.strip
SHAPES = {
    "chatml": Shape(turns(CHATML, CHATML_PROMPT), closing="<|im_end|>"),
    "llama-2": Shape(
        turns(
            MISTRAL.replace("ANSWER", "{{ ' ' + m.content.strip() + ' ' + eos_token }}"),
            "",
            "{{ bos_token }}",
        ),
        strip,
        " ",
        " </s>",
    ),
    "llama-3": Shape(turns(LLAMA3, LLAMA3_PROMPT, "{{ bos_token }}"), strip, closing="<|eot_id|>"),
    "llama-3.1": Shape(turns(LLAMA3, LLAMA3_PROMPT, DATED_SYSTEM), strip, closing="<|eot_id|>"),
    "tools": Shape(
        turns(LLAMA3, LLAMA3_PROMPT, DATED_SYSTEM), strip, closing="<|eot_id|>", variables={"tools": [TOOL]}
    ),
    "gemma": Shape(turns(GEMMA, GEMMA_PROMPT, "{{ bos_token }}"), strip, closing="<end_of_turn>"),
    "gemma-2": Shape(
        turns(GEMMA, GEMMA_PROMPT, "{{ bos_token }}" + NO_SYSTEM), strip, closing="<end_of_turn>"
    ),
    "gemma-3": Shape(
        turns(EITHER, "{{ '<start_of_turn>model\n' }}", "{{ bos_token }}").replace(
            "m.role +", "('model' if m.role == 'assistant' else m.role) +"
        ),
        strip,
        closing="<end_of_turn>",
    ),
    "mistral-v1": Shape(
        turns(MISTRAL.replace("ANSWER", "{{ m.content + eos_token }}"), "", "{{ bos_token }}")
    ),
    "mistral-v3": Shape(
        turns(MISTRAL.replace("ANSWER", "{{ ' ' + m.content|trim + eos_token }}"), "", "{{ bos_token }}"),
        strip,
        " ",
    ),
    "zephyr": Shape(
        turns("{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}", "{{ '<|assistant|>\n' }}")
    ),
    "phi-3": Shape(
        turns(
            PHI,
            "{{ '<|assistant|>\n' }}",
            after="{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}",
        ),
        closing="<|end|>\n<|endoftext|>",
    ),
    "phi-3.5": Shape(
        turns("{% if m.content %}" + PHI + "{% endif %}", "{{ '<|assistant|>\n' }}"), closing="<|end|>"
    ),
    "phi-4": Shape(
        turns(
            "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}",
            "{{ '<|im_start|>assistant<|im_sep|>' }}",
        ),
        closing="<|im_end|>",
    ),
    "qwen-2": Shape(turns(CHATML, CHATML_PROMPT, DEFAULT_SYSTEM), closing="<|im_end|>"),
    "qwen-3": Shape(THINKING, extra="<think>\n\n</think>\n\n", closing="<|im_end|>"),
    "qwen-3 without thinking": Shape(THINKING, closing="<|im_end|>", variables={"enable_thinking": False}),
    "qwq": Shape(
        THINKING.replace("{{- '<|im_start|>assistant\n' }}", "{{- '<|im_start|>assistant\n<think>\n' }}"),
        extra="\n</think>\n\n",
        closing="<|im_end|>",
    ),
    "granite-3": Shape(
        turns(
            "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '</s>\n' }}",
            "{{ '<|start_of_role|>assistant<|end_of_role|>' }}",
            GRANITE,
        ),
        dated=(GRANITE_DATE, "'April 10, 2025'"),
    ),
    "command-r": Shape(
        turns(
            "{{ '<|turn|>' + ('<|chatbot|>' if m.role == 'assistant' else '<|user|>') + m.content|trim + '<|turn_end|>' }}",
            "{{ '<|turn|><|chatbot|>' }}",
            "{{ bos_token }}",
        ),
        strip,
        closing="<|turn_end|>",
    ),
    "olmo": Shape(
        turns(
            "{{ '<|' + m.role + '|>\n' + m.content "
            "+ (eos_token if m.role == 'assistant' else '\n') "
            "+ ('\n' if m.role == 'assistant' and not loop.last else '') }}",
            "{{ '<|assistant|>\n' }}",
            "{{ bos_token }}",
        )
    ),
    "falcon": Shape(
        turns(
            "{{ ('Falcon' if m.role == 'assistant' else 'User') + ': ' + m.content + '\n\n' }}",
            "{{ 'Falcon: ' }}",
        ),
        closing="",
    ),
    "vicuna": Shape(
        turns(
            "{% if m.role == 'user' %}{{ ' USER: ' + m.content + ' ' }}"
            "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}",
            "{{ 'ASSISTANT:' }}",
            "{{ 'A chat between a user and an assistant.' }}",
        ),
        extra=" ",
    ),
    "alpaca": Shape(
        turns(
            "{{ '### ' + ('Response' if m.role == 'assistant' else 'Instruction') + ':\n' + m.content + '\n\n' }}",
            "{{ '### Response:\n' }}",
        ),
        closing="",
    ),
    "smollm-2": Shape(
        turns(CHATML, CHATML_PROMPT, DEFAULT_SYSTEM.replace("a helpful assistant", "SmolLM")),
        closing="<|im_end|>",
    ),
    "smollm-3": Shape(
        turns(SMOLLM3_TURN, SMOLLM3_PROMPT, SMOLLM3),
        lambda answer: answer.lstrip("\n"),
        closing="<|im_end|>",
        dated=SMOLLM3_DATE,
    ),
    "smollm-3 without thinking": Shape(
        turns(SMOLLM3_TURN, SMOLLM3_PROMPT, SMOLLM3),
        lambda answer: answer.lstrip("\n"),
        closing="<|im_end|>",
        variables={"enable_thinking": False},
        dated=SMOLLM3_DATE,
    ),
    "generation markers": Shape(turns(CHATML_MARKED, CHATML_PROMPT), closing="<|im_end|>"),
    "text after generation markers": Shape(
        turns(
            CHATML_MARKED, CHATML_PROMPT, after="{{ '<|endoftext|>' if not add_generation_prompt else '' }}"
        ),
        closing="<|im_end|>",
    ),
    "everything trimmed": Shape(
        "{% macro all() %}"
        + turns("{{ m.role + ': ' + m.content + '\n' }}", "{{ 'assistant:' }}")
        + "{% endmacro %}{{ all()|trim }}",
        str.rstrip,
        " ",
        "",
    ),
    "lists of parts": Shape(turns(PARTS, CHATML_PROMPT), closing="<|im_end|>"),
    "harmony": Shape(
        turns(
            HARMONY,
            "{{ '<|start|>assistant' }}",
            "{{ '<|start|>system<|message|>Knowledge cutoff: 2024-06<|end|>' }}",
        ),
        extra="<|channel|>final<|message|>",
        closing="<|return|>",
    ),
    "lower case": Shape(
        turns(CHATML.replace("m.content", "m.content|lower"), CHATML_PROMPT), str.lower, closing="<|im_end|>"
    ),
    "no generation prompt": Shape(turns(CHATML, ""), extra="<|im_start|>assistant\n", closing="<|im_end|>"),
}


@cache
def trained() -> str:
    """Return a tokenizer of some texts."""
    texts = [QUESTION, "Mira Okafor is a writer. She wrote of the sea in\n\nassistant user system"] * 9
    return str(train_tokenizer(texts, 420).backend_tokenizer.to_str())


def chat_tokenizer(template: Any = None, **attributes: bool) -> PreTrainedTokenizerFast:
    """Return byte-level BPE with all markers as tokens; it puts BOS before a text, which templates write themselves.

    Args:
        template: the chat template.
        attributes: of the markers, such as `rstrip`, with which they take in the spaces after them.
    """
    copy = Tokenizer.from_str(trained())
    made = PreTrainedTokenizerFast(
        tokenizer_object=copy, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    made.add_tokens(
        [AddedToken(each, special=True, normalized=False, **attributes) for each in MARKERS],
        special_tokens=True,
    )
    return made
