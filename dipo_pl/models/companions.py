"""Files of a model folder beside its weights: processors, chat templates, vocabularies, licenses."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

# Weights in any format, pickles, and indices of weights in several files.
WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data", ".pkl",
    ".pickle", ".npy", ".npz", ".joblib", ".tflite", ".ot", ".safetensors.index.json", ".bin.index.json",
)  # fmt: skip
# What another training left behind, and the card of another model.
OTHERS = ("README.md", "trainer_state.json", "adapter_config.json", "manifest.json", "dipo_pl.json")
LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
# Weights of a format that is not known here.
LARGEST = 100 * 2**20


def companions(folder: Path, code: bool = False) -> list[Path]:
    """Return the files of a model folder that belong to any model trained from it, as paths within the folder.

    Left out are weights and pickles, hidden files, the model card, and folders that hold weights: another format of the
    model, or other models.

    Args:
        folder: the model folder.
        code: also return Python files.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _is_hidden(path):
            inside = [each for each in sorted(path.rglob("*")) if each.is_file() and not _is_hidden(each)]
            if not any(map(_is_weights, inside)):
                found += inside
        elif path.is_file() and not _is_hidden(path) and not _is_weights(path) and path.name not in OTHERS:
            found.append(path)
    return [each.relative_to(folder) for each in found if code or each.suffix != ".py"]


def licenses(folder: Path) -> list[Path]:
    """Return the license files of a model folder, as paths within the folder."""
    return [each for each in companions(folder) if any(map(each.match, LICENSES))]


def model_folder(path: str, revision: str | None = None, file: str = "config.json") -> Path | None:
    """Return the folder of a model: a folder itself, or the one of a file that the cache holds of a hub id, else None."""
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists():
        return None
    cached = try_to_load_from_cache(path, file, revision=revision or "main")
    return Path(cached).parent if isinstance(cached, str) else None


def _is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "__"))


def _is_weights(path: Path) -> bool:
    return path.name.lower().endswith(WEIGHTS) or path.stat().st_size > LARGEST
