"""MUSE's data module on what the hub loads, and on a copy of its repository."""

import re

import datasets
import pytest
from muse_corpora import NEWS, check_whole

from dipo_pl.data_modules.muse import MUSE
from dipo_pl.errors import InputError


class TestHub:
    """Nothing here reaches the network."""

    def columns(self, subset, split):
        content = NEWS[f"{subset}/{split}"]
        return [{"text": each} for each in content] if isinstance(content[0], str) else content

    def test_what_is_loaded(self, monkeypatch):
        loaded = set()

        def load_dataset(path, name, split):
            loaded.add((path, name, split))
            return datasets.Dataset.from_list(self.columns(name, split))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        check_whole(MUSE().read(), NEWS)
        assert MUSE(forget="scal_2").read().forget == MUSE(forget=["sust_1", "sust_2"]).read().forget
        files = {name for name in NEWS if not re.fullmatch(r"scal/forget_[134]|sust/forget_[34]", name)}
        assert loaded == {("muse-bench/MUSE-News", *name.split("/")) for name in files}

    def test_a_copy_of_its_repository(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "MUSE-News"
        configurations = {}
        for name in NEWS:
            subset, split = name.split("/")
            file = folder / subset / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(self.columns(subset, split)).to_parquet(str(file))
            configurations.setdefault(subset, []).append(f"  - split: {split}\n    path: {subset}/{split}-*")
        lines = [
            f"- config_name: {subset}\n  data_files:\n" + "\n".join(files)
            for subset, files in configurations.items()
        ]
        (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n")
        check_whole(MUSE(str(folder)).read(), NEWS)

    def test_a_bad_row_names_its_place(self, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": ""}])
        with pytest.raises(InputError, match=r"^me/my raw/forget\[0\]: 'text' must be a non-empty text"):
            MUSE("me/my", corpus="News").read()

    def test_out_of_reach(self, monkeypatch):
        def load_dataset(*_, **__):
            raise ConnectionError("Couldn't reach\nthe hub")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(
            InputError, match=r"^cannot read MUSE's sust/forget_2: .* \(Couldn't reach the hub\)$"
        ):
            MUSE(forget="sust_2").read()
