"""Classes of a user's module, which a config names: with secrets in their arguments, and with losses that fail."""

from lightning.pytorch.loggers import TensorBoardLogger

from dipo_pl.losses import CrossEntropy


class Remote(TensorBoardLogger):
    def __init__(
        self,
        save_dir: str,
        api_key: str,
        auth_token: list[str],
        server: str = "",
        name: str = "run",
        version: str = "",
    ) -> None:
        super().__init__(save_dir, name, version)


class Failing(CrossEntropy):
    def __init__(self, server: str) -> None:
        self.server = server

    def terms_and_gradient(self, logits, targets, reference_logits):
        raise OSError(f"no answer from {self.server}")


class Diverging(CrossEntropy):
    steps = 0

    def terms_and_gradient(self, logits, targets, reference_logits):
        Diverging.steps += 1
        terms = super().terms_and_gradient(logits, targets, reference_logits)
        return terms._replace(values=terms.values * (float("nan") if Diverging.steps > 4 else 1))
