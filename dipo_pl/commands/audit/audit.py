"""An audit: its attacks one after another, each finished one in a file of its own, and the figures made from them."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from dipo_pl.attacks.base import Attack, Outcome, by_model
from dipo_pl.attacks.judgement import Judgement, judge, not_tried, overall
from dipo_pl.attacks.memory import FileMemory, remove_others
from dipo_pl.attacks.score import scores
from dipo_pl.attacks.subject import RETAIN_ONLY, TARGET, UNLEARNED, Memory, Subject
from dipo_pl.cli.run import data_module
from dipo_pl.commands.audit.checks import check_rows, check_weights
from dipo_pl.commands.audit.config import AuditConfig
from dipo_pl.commands.audit.fingerprints import write_fingerprints
from dipo_pl.commands.audit.models import identity_of
from dipo_pl.commands.audit.progress import AuditProgress
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError
from dipo_pl.evaluation.lm_eval_tasks import headline_of, metrics_of, refuse_no_share
from dipo_pl.metrics.conventions import UTILITY_SETS
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.modules.finetuning import FineTuning
from dipo_pl.report.model_card import write_model_card
from dipo_pl.report.run import lookup
from dipo_pl.storage.files import write_text
from dipo_pl.storage.fingerprints import settings_fingerprint
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.secrets import redact, redact_arguments
from dipo_pl.storage.versions import installed_versions
from dipo_pl.version import __version__

# Format of an attack's file; a result of an earlier format is made again.
FORMAT = 3


class Audit:
    """Audit of a finished run.

    Args:
        run: the run.
        folder: the audit's own folder.
        config: its settings.
        sources: where the models come from, by name.
        fabric: gives the device of this rank; launched before `run`.
        key: of the rows' fingerprints; None writes none.
        references: folder that keeps what is found of the target and the retain-only model, for audits of other runs beside
            the same two; None keeps it in the audit's own.

    Raises:
        InputError: the rows cannot be read or are not the run's, or the run measured no forget set.
    """

    def __init__(
        self,
        run: FinishedRun,
        folder: RunFolder,
        config: AuditConfig,
        sources: Mapping[str, Pretrained],
        fabric: Fabric,
        key: bytes | None = None,
        references: Path | None = None,
    ) -> None:
        self.key = key
        self._references = references
        self._sources = sources
        self._parts = folder.path / "attacks" / "parts"
        # Identities of all results of this config.
        self._identities: set[str] = set()
        # Outcomes of the attacks that were tried.
        self.outcomes: dict[str, Outcome] = {}
        self.run_folder, self.config, self.of, self.fabric = folder, config, run, fabric
        data = data_module(run.config)
        data.connect(FineTuning(sources[UNLEARNED]))
        data.setup("validate")
        check_rows(run, data)
        quality = run.config.get("forget_quality") or {}
        utility = quality.get("utility_sets")
        self.subject = Subject(
            sources,
            data,
            UTILITY_SETS if utility is None else utility,
            quality.get("max_new_tokens") or 200,
            fabric.device,
            config.seed,
        )
        # The run, relearn and quantize compute like this; float16 would need a loss scale to train with.
        self._in_bfloat16 = lookup(run.config, "trainer", "precision") in ("bf16-mixed", "bf16")
        # A result that was made from anything else is made again.
        self._identity = [
            FORMAT,
            __version__,
            self._in_bfloat16,
            {each.name: each.tokens for each in data.evaluation_sets},
            data.training_tokens,
            [(row.paraphrased_question, row.entity) for row in self.subject.forget.rows],
            self.subject.utility_sets,
            self.subject.max_new_tokens,
            config.seed,
        ]
        self._models = {name: identity_of(each) for name, each in sources.items()}

    def check_models(self, target_is_given: bool) -> None:
        """Check the models' weights, once for each of them.

        Args:
            target_is_given: see `check_weights`.

        Raises:
            InputError: see `check_weights`.
        """
        start = self.of.manifest.get("policy")
        memory = FileMemory(self._parts, self._made_from(["weights", start, target_is_given]))
        memory.part("weights", lambda: check_weights(self.of, self._sources, target_is_given))

    def run(self, arguments: Sequence[str]) -> None:
        """Try all attacks and write what they find. What a killed audit has finished is read.

        Args:
            arguments: of the command line, for the manifest.
        """
        first = self.fabric.is_global_zero
        lacking = {each.name: each.lacks(self.subject) for each in self.config.attacks}
        if first:
            # The manifest comes first, so that the folder is known for an audit's whenever this is cut.
            self._write_manifest("running", arguments)
            write_text(self.run_folder.config, self.config.text)
            if self.key is not None:
                write_fingerprints(self.run_folder, self.key, self.subject.forget.rows)
        progress = AuditProgress(sum(each is None for each in lacking.values()))
        self.subject.started, self.subject.advanced = progress.started, progress.advanced
        if first:
            progress.line.open()
        outcomes = self.outcomes
        judgements: dict[str, Judgement] = {}
        try:
            tasks = self._tasks()
            for attack in self.config.attacks:
                if (missing := lacking[attack.name]) is not None:
                    judgements[attack.name] = not_tried(f"it takes {missing}", missing)
                    continue
                progress.next_attack(attack.name)
                try:
                    outcomes[attack.name] = self._outcome(attack)
                except InputError as error:
                    judgements[attack.name] = not_tried(self._without_texts(error))
                else:
                    judgements[attack.name] = judge(
                        outcomes[attack.name], attack.tolerance, self.config.removed
                    )
        finally:
            progress.line.close()
        if first:
            self._write(outcomes, judgements, tasks, arguments)
        self.fabric.barrier()

    def _tasks(self) -> dict[str, dict[str, Any]]:
        """Return lm-eval's results on each model by name, of this or an interrupted audit.

        Raises:
            InputError: a task cannot be loaded, or its first metric is no share.
        """
        tasks = self.config.utility
        if tasks is None:
            return {}
        tasks.load()
        self._remember([tasks.versions, tasks.fingerprint])

        def results(name: str) -> dict[str, Any]:
            with self._autocast(), self.subject.model(name) as model:
                return tasks.results(model, self.subject.tokenizer)

        found = self.subject.each_model("utility", results)
        for each in found.values():
            refuse_no_share(each)
        return found

    def _without_texts(self, error: InputError) -> str:
        """Return an error on one line, in which texts of forget rows are left out: the audit's folder holds none."""
        message = " ".join(str(error).split())
        for row in self.subject.forget.rows:
            for text in (row.question, row.answer, row.paraphrased_question, row.entity):
                if text:
                    # `Row.label` and others quote them like this.
                    message = message.replace(" ".join(repr(text[:60]).split()), "'...'")
        return message

    def _outcome(self, attack: Attack) -> Outcome:
        """Return what an attack finds, of this or an interrupted audit."""
        identity = self._remember(settings_fingerprint(attack))

        def found() -> dict[str, Any]:
            with self._autocast():
                outcome = attack.run(self.subject)
            outcome.check(attack.name)
            return outcome.content()

        return Outcome.read(FileMemory(self._parts.parent, identity).part(attack.name, found))

    def _autocast(self) -> torch.autocast:
        # Casts that are kept would be of weights that an attack has changed since.
        return torch.autocast(
            self.fabric.device.type, torch.bfloat16, enabled=self._in_bfloat16, cache_enabled=False
        )

    def _remember(self, settings: Any) -> str:
        """Have the subject find what is known already under these settings; return the hash of `_made_from`."""
        identity = self._made_from(settings)
        self.subject.memory = FileMemory(self._parts, identity)
        known: dict[str, Memory] = {}
        if self._references is not None:
            for name in {TARGET, RETAIN_ONLY} & self._models.keys():
                of_model = self._hash({name: self._models[name]}, settings)
                known[name] = FileMemory(self._references / of_model[:16], of_model)
        self.subject.memories = known
        return identity

    def _made_from(self, settings: Any) -> str:
        """Return a hash of all that a result of these settings depends on."""
        identity = self._hash(self._models, settings)
        self._identities.add(identity)
        return identity

    def _hash(self, models: Mapping[str, Any], settings: Any) -> str:
        made_from = json.dumps([*self._identity, models, settings], default=str)
        return hashlib.sha256(made_from.encode()).hexdigest()

    def _write(
        self,
        outcomes: Mapping[str, Outcome],
        judgements: Mapping[str, Judgement],
        tasks: Mapping[str, Mapping[str, Any]],
        arguments: Sequence[str],
    ) -> None:
        metrics: dict[str, float] = {}
        for each in outcomes.values():
            metrics |= each.metrics
        metrics |= by_model({model: metrics_of(each) for model, each in tasks.items()})
        utility = (
            [headline_of(tasks[TARGET], each) for each in tasks[TARGET]["asked"]] if TARGET in tasks else []
        )
        metrics |= scores(metrics, utility)
        # A result of an earlier config, once signed with the rest, would count as one of this config.
        for folder in (self._parts.parent, self._parts):
            remove_others(folder, self._identities)
        write_text(self.run_folder.metrics, json.dumps({"epoch": None, "step": 0, **metrics}) + "\n")
        shown = ("headline", "values", "intervals", "series")
        found = {name: {key: each.content()[key] for key in shown} for name, each in outcomes.items()}
        attacks = {name: asdict(each) | found.get(name, {}) for name, each in judgements.items()}
        verdict = asdict(overall(dict(judgements)))
        self._write_manifest("finished", arguments, ended=_now(), verdict=verdict, attacks=attacks)
        write_model_card(RunFolder(self.of.path))

    def _write_manifest(self, status: str, arguments: Sequence[str], **further: Any) -> None:
        record: dict[str, Any] = {
            "status": status,
            "command": "audit",
            "started": self.run_folder.read_manifest().get("started", _now()),
            "dipo_pl": __version__,
            "versions": installed_versions(),
            "platform": platform.platform(),
            "arguments": redact_arguments(arguments),
            "world_size": self.fabric.world_size,
            "device": str(self.fabric.device),
            "autocast": "bfloat16" if self._in_bfloat16 else None,
            "probe": {"kind": "audit", "of": str(self.of.path), "weights": self.of.weights},
            "models": {name: redact(each.source) for name, each in self.subject.sources.items()},
            "rows": len(self.subject.forget.rows),
        }
        write_text(self.run_folder.manifest, json.dumps(record | further, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fabric_of(run: FinishedRun, devices: int) -> Fabric:
    """Return Fabric, not launched yet, on the kind of device that the run had."""
    accelerator = (run.config.get("trainer") or {}).get("accelerator") or "auto"
    return Fabric(accelerator=accelerator, devices=devices, strategy="ddp" if devices > 1 else "auto")
