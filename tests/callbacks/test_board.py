"""TensorBoard: names by group, thresholds beside what they judge, the trajectory, hyperparameters once."""

import pytest
from google.protobuf.json_format import MessageToDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from dipo_pl.callbacks.logged_names import RunLogger, logged_name
from dipo_pl.evaluation.verdict_rules import Evidence, Thresholds, forgetting, metric_thresholds, utility

TARGET = {
    "step": 0, "forget_probability": 0.8, "forget_rouge_l_recall": 0.6, "forget_extraction_strength": 0.01,
    "holdout_rouge_l_recall": 0.2, "model_utility": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(("metric", "name"), [
    ("forget_probability", "forget/probability"),
    ("forget_quality_log10_p", "forget/quality_log10_p"),
    ("forget_questions_probability", "forget/questions_probability"),
    ("request_2_probability", "forget/request_2_probability"),
    ("held_back_probability", "forget/held_back_probability"),
    ("retain_rouge_l_recall", "retain/rouge_l_recall"),
    ("membership_min_k_auc", "privacy/membership_min_k_auc"),
    ("priv_leak", "privacy/priv_leak"),
    ("holdout_probability", "privacy/holdout_probability"),
    ("model_utility", "utility/model_utility"),
    ("world_facts_truth_ratio", "utility/world_facts_truth_ratio"),
    ("forgetting", "utility/forgetting"),
])  # fmt: skip
def test_a_metric_has_a_group(metric, name):
    assert logged_name(metric) == name


def test_files_of_a_run_that_goes_on_at_once_are_read_in_order(tmp_path):
    """TensorBoard reads them by name, where within one second .10 is before .9, and drops steps read before a lower one."""
    for step in range(3):
        logger = RunLogger(tmp_path, "run", version="")
        logger.log_metrics({"loss": 1.0}, step)
        logger.finalize("success")
    files = [each.name.split(".") for each in (tmp_path / "run").glob("events.out.tfevents.*")]
    assert len({second for _, _, _, second, *_ in files}) == 3
    assert [each.step for each in EventAccumulator(str(tmp_path / "run")).Reload().Scalars("train/loss")] == [
        0,
        1,
        2,
    ]


def test_a_threshold_is_where_a_rule_begins_to_be_met():
    thresholds = Thresholds(removed=0.9, utility=0.95)
    found = metric_thresholds(Evidence(TARGET, TARGET), thresholds)
    # 0.8 - 0.9 * 0.8; 0.6 - 0.9 * (0.6 - 0.2); nothing to extract; 0.95 * 0.5
    assert found == pytest.approx(
        {"forget_probability": 0.08, "forget_rouge_l_recall": 0.24, "model_utility": 0.475}
    )
    for offset, met in ((-1e-9, True), (1e-9, False)):
        now = TARGET | {name: value + offset for name, value in found.items()}
        rules = [each for each in forgetting(Evidence(TARGET, now), thresholds) if each.value is not None]
        assert {each.rule: each.status == "met" for each in rules} == {
            "forget_probability": met, "forget_rouge": met,
        }  # fmt: skip
        assert (utility(Evidence(TARGET, now), thresholds).status == "met") is not met


def test_a_run_has_thresholds_trajectory_and_hyperparameters(smoke):
    events = EventAccumulator(str(smoke)).Reload()
    # At each of the three evaluations; by other measures this random model has nothing to forget.
    assert [each.step for each in events.Scalars("forget/rouge_l_recall_threshold")] == [0, 3, 6]
    (figure,) = events.Images("trajectory")
    assert (figure.step, figure.width > 300) == (6, True)
    (layout,) = events.Tensors("custom_scalars__config__")
    charts = MessageToDict(layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0]))
    assert charts["category"][0]["chart"][0]["multiline"]["tag"] == [
        "forget/rouge_l_recall", "forget/rouge_l_recall_threshold",
    ]  # fmt: skip
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    shown = {name: each.string_value or each.number_value for name, each in given.items()}
    assert shown["model.optimizer.lr"] == 1e-3
    assert shown["model.forget_loss"] == "DiPO"
    assert shown["data.batch_size"] == 8
    assert not [name for name in shown if "_path" in name or "init_args" in name]
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {each.name.tag for each in metrics} >= {"forget/probability", "utility/model_utility"}
    assert {each.name.tag for each in metrics} <= {*events.Tags()["scalars"]}
