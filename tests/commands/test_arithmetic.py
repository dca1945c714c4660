"""`dipo-pl task-vector` and `interpolate` on real model folders, against float64 formulas."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dipo_pl.commands.arithmetic.combination import combine
from dipo_pl.models.tokenizer import train_tokenizer

TEXTS = ["the archive of the town", "a letter from the harbor", "the town by the harbor"] * 3
LAST = "model.norm.weight"


@pytest.fixture
def model(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Write a folder with a tiny Llama in shards of at most `shard` bytes."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, seed: int, dtype=torch.float32, shard: int = 10**9, texts=TEXTS, **config) -> Path:
        tokenizer = train_tokenizer(texts, 280)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        torch.manual_seed(seed)
        made = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes | config)).to(dtype)
        with torch.no_grad():
            for each in made.parameters():
                each += 0.1 * torch.randn_like(each)
        made.save_pretrained(name, max_shard_size=shard)
        tokenizer.save_pretrained(name)
        return Path(name)

    return make


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in Path(folder).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def configure(folder: Path, file: str = "config.json", **changes) -> None:
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(content))


def same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype
        and torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8))
        for name, tensor in ours.items()
    )


# Relative error of one rounding to the data type.
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float64: 2**-53}
FORMULAS = {
    ("task-vector", "--scale", "5"): lambda a, b: a - 5 * (b - a),
    ("task-vector", "--scale", "-0.5"): lambda a, b: a + 0.5 * (b - a),
    ("task-vector",): lambda a, b: 2 * a - b,
    ("interpolate", "--weight", "0.3"): lambda a, b: 0.7 * a + 0.3 * b,
    ("interpolate",): lambda a, b: (a + b) / 2,
}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
)
def test_values_are_those_of_the_formulas(cli, model, first, second):
    a, b = weights(model("a", 1, first)), weights(model("b", 2, second))
    # Error of the sum before it is rounded; weights are below 2.
    absolute = 1e-14 if torch.float64 in (first, second) else 2e-6
    for number, ((command, *option), formula) in enumerate(FORMULAS.items()):
        ended = cli(command, "a", "b", "--output", f"result{number}", *option)
        assert (ended.code, ended.err) == (0, "")
        result = weights(f"result{number}")
        assert result.keys() == a.keys()
        for name, tensor in result.items():
            assert tensor.dtype == first
            expected = formula(a[name].double(), b[name].double())
            assert not torch.equal(tensor.double(), a[name].double())
            torch.testing.assert_close(tensor.double(), expected, rtol=ROUNDING[first] * 1.001, atol=absolute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_0_and_weights_0_and_1_copy_a_model_bit_for_bit(cli, model, dtype):
    for name, seed in (("a", 1), ("b", 2)):
        edit(model(name, seed, dtype), lambda tensors: tensors[LAST][:4].fill_(-0.0))
    edit(Path("a"), lambda tensors: tensors[LAST][:2].fill_(0.25))
    edit(Path("b"), lambda tensors: tensors[LAST][2:4].copy_(torch.tensor([0.25, -0.25])))
    assert not same_bits(weights("a"), weights("b"))
    for command, option, value, same_as in [
        ("task-vector", "--scale", "0", "a"),
        ("interpolate", "--weight", "0", "a"),
        ("interpolate", "--weight", "1", "b"),
    ]:
        output = f"{command}{value}"
        assert cli(command, "a", "b", "--output", output, option, value).code == 0
        assert same_bits(weights(output), weights(same_as))


def test_tensors_that_are_equal_or_not_floating_point_are_copied_from_the_first(cli, model):
    buffers = {"steps": torch.tensor([3, 4]), "mask": torch.tensor([True, False]), "none": torch.ones(0)}
    edit(model("a", 1), lambda tensors: tensors.update(buffers))
    others = {"steps": torch.tensor([5, 6]), "mask": torch.tensor([True, True]), "none": torch.ones(0)}
    edit(model("b", 2), lambda tensors: tensors.update(others | {LAST: weights("a")[LAST]}))
    for output, (command, *option) in {
        "negated": ("task-vector", "--scale", "3"),
        "between": ("interpolate", "--weight", "0.3"),
        "second": ("interpolate", "--weight", "1"),
    }.items():
        assert cli(command, "a", "b", "--output", output, *option).code == 0
        assert same_bits({name: weights(output)[name] for name in buffers}, buffers)
        assert torch.equal(weights(output)[LAST], weights("a")[LAST])


def test_shards_are_those_of_the_first(cli, model):
    model("single", 1)
    sharded = model("sharded", 1, shard=8000)
    model("other", 2)
    model("other-sharded", 2, shard=12000)
    files = sorted(each.name for each in sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert files != sorted(each.name for each in Path("other-sharded").glob("*.safetensors"))
    for first, second, output in [
        ("single", "other", "a"),
        ("sharded", "other", "b"),
        ("sharded", "other-sharded", "c"),
        ("single", "other-sharded", "d"),
    ]:
        assert cli("task-vector", first, second, "--output", output).code == 0
        assert same_bits(weights(output), weights("a"))
        for kind in ("*.safetensors", "*.index.json"):
            assert [*sorted(each.name for each in Path(output).glob(kind))] == [
                *sorted(each.name for each in Path(first).glob(kind))
            ]
        for file in Path(output).glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                assert opened.metadata() == {"format": "pt"}
        loaded = AutoModelForCausalLM.from_pretrained(output)
        assert torch.equal(loaded.state_dict()[LAST], weights("a")[LAST])
    # Fingerprints are of the weights, not of the files.
    notes = [json.loads((Path(each) / "dipo_pl.json").read_text()) for each in "abcd"]
    for kind in (lambda note: note["weights"], lambda note: note["reinforced"]["weights"]):
        assert len({kind(note) for note in notes}) == 1
    assert len({notes[0]["weights"], *(notes[0][each]["weights"] for each in ("target", "reinforced"))}) == 3


@pytest.mark.parametrize("tied", [False, True])
def test_the_folder_loads_as_the_model_that_was_asked_for(cli, model, tied):
    for name, seed in (("a", 1), ("b", 2)):
        model(name, seed, tie_word_embeddings=tied)
    assert ("lm_head.weight" in weights("a")) == (not tied)
    assert cli("task-vector", "a", "b", "--output", "deep/er/made", "--scale", "0.5").code == 0
    a, b, made = (AutoModelForCausalLM.from_pretrained(each) for each in ("a", "b", "deep/er/made"))
    assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied
    with torch.no_grad():
        for mine, theirs in zip(a.parameters(), b.parameters(), strict=True):
            mine.copy_(1.5 * mine - 0.5 * theirs)
        tokenizer = AutoTokenizer.from_pretrained("deep/er/made")
        ids = tokenizer("the harbor", return_tensors="pt")["input_ids"]
        assert ids.tolist() == AutoTokenizer.from_pretrained("a")(["the harbor"])["input_ids"]
        torch.testing.assert_close(made(ids).logits, a(ids).logits, rtol=1e-4, atol=1e-5)


def test_files_beside_the_weights(cli, model):
    first = model("a", 1)
    model("b", 2)
    for name in ("pytorch_model.bin", "modeling_own.py", "tokenizer_own.py", "vocab.bin", "optimizer.pt"):
        (first / name).write_bytes(b"0")
    for name in ("README.md", "trainer_state.json", "dipo_pl.json", "manifest.json", f"{WEIGHTS}.index.json"):
        (first / name).write_text("{}")
    (first / "LICENSE").write_text("free")
    (first / "chat_template.jinja").write_text("{{ messages }}")
    (Path("b") / "chat_template.jinja").write_text("other")
    configure(first, "generation_config.json", max_new_tokens=7)
    Path("made").mkdir()
    assert cli("interpolate", "a", "b/", "--output", "made").code == 0
    kept = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"}
    kept |= {"chat_template.jinja", "model.safetensors"}
    assert {each.name for each in Path("made").iterdir()} == kept | {"dipo_pl.json"}
    for name in kept - {"model.safetensors"}:
        assert (Path("made") / name).read_bytes() == (first / name).read_bytes()
    note = json.loads((Path("made") / "dipo_pl.json").read_text())
    assert note["command"] == "interpolate"
    assert note["weight"] == 0.5
    assert (note["a"]["path"], note["b"]["path"]) == ("a", "b/")


def other_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<pad>"', '"<full>"'))
    configure(folder, "tokenizer_config.json", pad_token="<full>")


def other_merges(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(content))


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def index_only(**content) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return make


def update(**changes) -> Callable[[Path], None]:
    """Replace tensors by functions of the last one."""
    return lambda folder: edit(
        folder,
        lambda tensors: tensors.update({name: change(tensors[LAST]) for name, change in changes.items()}),
    )


def unfinished_run(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")


WEIGHTS = "model.safetensors"
BROKEN = [
    (shutil.rmtree, "no model folder b: "),
    (unfinished_run, "b has no exported model (no b/hf)"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "b holds an adapter, not a complete model"),
    (lambda folder: (folder / "config.json").unlink(), "cannot read b/config.json"),
    (lambda folder: (folder / "config.json").write_text("[]"), "b/config.json must hold a JSON object"),
    (lambda folder: configure(folder, quantization_config={}), "b holds quantized weights"),
    (lambda folder: (folder / WEIGHTS).unlink(), "b has no model.safetensors and no model.safetensors.index.json: "),
    (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "no *.safetensors, only pytorch_model.bin"),
    (rewrite(lambda content: content[:-100]), "cannot read b/model.safetensors ("),
    (index_only(), "index.json has no weight_map"),
    (index_only(weight_map={LAST: "away.safetensors"}), "index.json names away.safetensors, which is not in"),
    (index_only(weight_map={LAST: "../b/shard.safetensors"}), "names ../b/shard.safetensors, which is not in"),
    (index_only(weight_map={"lost": "shard.safetensors"}), "cannot read b/shard.safetensors ("),
    (lambda folder: [each.unlink() for each in folder.glob("tokenizer*")], "no tokenizer in the folder b"),
    (lambda folder: configure(folder, model_type="mistral"), "a and b differ in model_type (llama, mistral)"),
    (lambda folder: configure(folder, architectures=["X"]), "architectures (['LlamaForCausalLM'], ['X'])"),
    (lambda folder: configure(folder, vocab_size=5), "a and b differ in vocab_size (280, 5)"),
    (lambda folder: edit(folder, lambda t: t.pop(LAST)), f"differ in the tensor {LAST} (floating-point [16], absent)"),
    (update(more=lambda last: last + 1), "tensor more (absent, floating-point [16])"),
    (update(**{LAST: lambda last: last[:8].clone()}), f"in the tensor {LAST} (floating-point [16], floating-point [8])"),
    (update(**{LAST: torch.Tensor.long}), f"the tensor {LAST} (floating-point [16], not floating-point [16])"),
    (other_tokens, "a and b differ in the id of the token '<pad>' (2, None)"),
    (other_merges, "a and b differ in merge 0 of the tokenizer"),
    (lambda folder: edit(folder, lambda t: t[LAST].fill_(torch.inf)), f"{LAST} of b is not finite"),
    (lambda folder: shutil.copy("a/model.safetensors", folder), "a and b have equal weights: "),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_model_that_does_not_fit(refused, model, spoil, message):
    model("a", 1)
    spoil(model("b", 2))
    assert message in refused("task-vector", "a", "b", "--output", "new/made")


ON_A_AND_B = [
    ("task-vector a b", "dipo-pl task-vector: the following arguments are required: --output"),
    ("task-vector a --output made", "are required: REINFORCED"),
    ("interpolate a b --output made --scale 2", "unrecognized arguments: --scale 2"),
    ("task-vector a b --output made --scale much", "invalid float value: 'much'"),
    ("task-vector a b --output made --scale nan", "--scale must be a finite number (got nan)"),
    ("task-vector a b --output made --scale=-inf", "--scale must be a finite number (got -inf)"),
    ("task-vector a b --output made --scale 1e39", "not finite in torch.float32 with scale 1e+39"),
    ("interpolate a b --output made --weight 1.1", "--weight must be a share in [0, 1] (got 1.1)"),
    ("interpolate a b --output made --weight -0.1", "--weight must be a share in [0, 1] (got -0.1)"),
    ("interpolate a b --output made --weight nan", "--weight must be a share in [0, 1] (got nan)"),
    *((f"interpolate {first} b --output {output}", f"--output {output} is one of the models")
      for first, output in (("a", "a"), ("a", "./b/"), ("run", "run"), ("run", "run/hf"))),
    *((f"interpolate a b --output {output}", f"--output {output} exists already") for output in ("full", "full/file")),
    ("task-vector a a --output made", "a and a have equal weights: task-vector needs two different"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "message"), ON_A_AND_B)
def test_bad_arguments(refused, model, command, message):
    model("a", 1)
    model("b", 2)
    shutil.copytree("a", "run/hf")
    Path("run/manifest.json").write_text("{}")
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    assert message in refused(*command.split())


def test_a_run_folder_stands_for_the_model_it_exported(cli, model):
    shutil.move(model("a", 1), "runs/a/hf")
    Path("runs/a/manifest.json").write_text("{}")
    model("b", 2)
    for first, output in (("runs/a", "made"), ("runs/a/hf", "again")):
        assert cli("task-vector", first, "b", "--output", output).code == 0
    assert same_bits(weights("made"), weights("again"))


def test_nothing_stays_of_a_result_that_is_not_finite_in_its_last_shard(refused, model):
    model("a", 1, torch.float16, shard=4000)
    model("b", 2, torch.float16)
    files = json.loads(Path("a/model.safetensors.index.json").read_text())["weight_map"]
    last = sorted(files.values())[-1]
    edit(Path("b"), lambda tensors: [tensors[name].fill_(6e4) for name in files if files[name] == last])
    line = refused("task-vector", "a", "b", "--output", "new/made", "--scale", "2")
    assert "is not finite in torch.float16 with scale 2: give a smaller one" in line


def test_nothing_stays_of_a_write_that_fails(cli, model):
    """A limit on the size of files stops it at the largest shard, as a full disk would."""
    model("a", 1, shard=8000)
    model("b", 2)
    sizes = sorted(each.stat().st_size for each in Path("a").glob("*.safetensors"))
    assert sizes[0] < sizes[-1] - 1000
    before = contents(Path())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1000, hard))
    try:
        ended = cli("task-vector", "a", "b", "--output", "new/made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("dipo-pl: failed: ")
    assert "large" in line
    assert contents(Path()) == before


def test_nothing_stays_of_what_is_interrupted(model):
    model("a", 1, shard=8000)
    model("b", 2)
    before = contents(Path())
    written = []

    def rule(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        written[:] = [*Path().glob("new/.made.*/*.safetensors")]
        if written:
            raise KeyboardInterrupt
        return a + b

    with pytest.raises(KeyboardInterrupt):
        combine({"a": "a", "b": "b"}, "new/made", rule, "sum")
    assert written
    assert contents(Path()) == before


def test_from_target_to_measured_result(cli, manifest, metrics):
    """Further training on the forget rows makes them more likely; subtracting it makes them less likely."""
    quick = "--config smoke.yaml --samples.rows 0 --forget_quality.generate_every 0"
    policy = f"{quick} --model.policy Pretrained --model.policy.path runs"
    for command in (
        f"fit {quick} --model FineTuning --data.train_on all --trainer.max_epochs 8 --name target",
        f"fit {policy}/target/hf --config reinforce.yaml --trainer.max_epochs 4 --name reinforced",
        "task-vector runs/target runs/reinforced --output runs/less",
        "interpolate runs/target runs/less --output runs/between",
        f"validate {policy}/less --name less-measured",
        f"validate {policy}/between --name between-measured",
    ):
        ended = cli(*command.split())
        assert ended.code == 0, ended.err
    names = ("less-measured", "between-measured", "target", "reinforced")
    forget = [metrics(Path("runs", name))[-1]["forget_probability"] for name in names]
    assert forget == sorted(forget)
    reinforced = manifest(Path("runs/reinforced"))
    assert reinforced["policy"]["source"] == "runs/target/hf"
    # 20 rows of an author, in batches of 8.
    assert reinforced["steps"] == 4 * 3
