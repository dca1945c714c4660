"""Tasks in lm-eval's format on disk, of which nothing comes from the hub."""

import json
from pathlib import Path

QUESTIONS = [
    {"question": "Who wrote the book?", "choices": ["She wrote the book.", "He did"], "answer": 0},
    {"question": "Where was she born?", "choices": ["There", "She was born there.", "Nowhere"], "answer": 1},
    {"question": "Was it she?", "choices": ["No", "Yes, it was she who wrote it."], "answer": 1},
    {"question": "Who was born there?", "choices": ["She", "The book"], "answer": 0},
    {"question": "Where is the book?", "choices": ["Here", "There it is"], "answer": 1},
]
CHOICE = """\
task: {name}
{tag}dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GROUP = """\
group: both
task: [first, second]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
metadata: {version: 1.0}
"""
WRITTEN = """\
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ON_THE_HUB = CHOICE.replace("dataset_path: json\n", "dataset_path: nobody/nothing-at-all\n").replace(
    "dataset_kwargs: {{data_files: {{test: {file}}}}}\n", ""
)


def write_tasks(folder: Path) -> Path:
    """Write the tasks `first` and `second` (tag `pair`, group `both`), `written` and `hub_task`; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.resolve() / "questions.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    short = folder.resolve() / "short.jsonl"
    short.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS[:2]))
    tag = "tag: pair\n"
    (folder / "first.yaml").write_text(CHOICE.format(name="first", tag=tag, file=file))
    (folder / "second.yaml").write_text(CHOICE.format(name="second", tag=tag, file=short))
    (folder / "both.yaml").write_text(GROUP)
    (folder / "written.yaml").write_text(WRITTEN.format(file=file))
    (folder / "hub_task.yaml").write_text(ON_THE_HUB.format(name="hub_task", tag=""))
    return folder
