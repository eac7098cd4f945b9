"""The presets are the paper's architectures, and what is written is what the student's own code reads."""

import json

import pytest
import torch

from distill_eval.errors import ConfigError
from distill_eval.profiling.presets import KEPT_LAYERS, PRESETS, preset_names, write_target

# Counted by hand from Qwen3-0.6B's sizes: 596,049,920, and what each mixer adds to a layer.
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "hybrid-kda": 613_334_096,
    "hybrid-mamba2": 640_816_880,
    "hybrid-gdn": 605_377_952,
    "pure-kda": 619_095_488,
    "pure-mamba2": 655_739_200,
}
STUDENTS = [name for name in PRESETS if "teacher_config" in PRESETS[name]]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_kinds_of_layers(tmp_path, name):
    from transformers import AutoConfig, AutoModelForCausalLM

    import distill.hybrid  # noqa: F401  (registers the students)

    target = write_target(name, tmp_path / name)
    config = AutoConfig.from_pretrained(target.folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    kept = KEPT_LAYERS if name.startswith("hybrid") else () if name.startswith("pure") else range(28)
    with_attention = [hasattr(layer.self_attn, "q_norm") for layer in model.model.layers]
    assert [layer for layer, attends in enumerate(with_attention) if attends] == list(kept)
    assert config.max_position_embeddings == 262144


@pytest.mark.parametrize("name", STUDENTS)
def test_students_are_written_as_their_own_config_writes_them(name):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from distill.hybrid_config import HybridConfig

    ours = PRESETS[name]
    settings = dict(ours["teacher_config"])
    kept = [layer for layer, kind in enumerate(ours["layer_types"]) if kind == "full_attention"]
    teacher = CONFIG_MAPPING[settings.pop("model_type")](**settings)
    made = HybridConfig.from_teacher(teacher, attention_layers=kept, mixer=ours["mixer"]).to_dict()
    read = HybridConfig.from_dict(ours).to_dict()
    named_when_saved = {"architectures", "dtype"}
    assert {key for key in made if made[key] != read[key]} == named_when_saved
    assert {key for key in ours if key != "teacher_config" and ours[key] != made[key]} == named_when_saved
    assert ours["teacher_config"].items() <= made["teacher_config"].items()


def test_a_target_holds_no_weights_and_is_known_by_its_settings(tmp_path):
    target = write_target("tiny-hybrid-kda", tmp_path / "a")
    assert (target.label, target.preset, target.model_type, target.random_weights) == (
        "tiny-hybrid-kda", "tiny-hybrid-kda", "distill_eval_hybrid", True,
    )  # fmt: skip
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["config.json"]
    again = write_target("tiny-hybrid-kda", tmp_path / "b")
    other = write_target("tiny", tmp_path / "c")
    assert target.fingerprint == again.fingerprint != other.fingerprint


def test_a_config_of_ones_own_by_file_or_folder(tmp_path):
    own = tmp_path / "mine"
    own.mkdir()
    (own / "config.json").write_text(json.dumps(PRESETS["tiny"]))
    (tmp_path / "other.json").write_text(json.dumps(PRESETS["tiny"]))
    targets = [
        write_target(str(path), tmp_path / str(number))
        for number, path in enumerate((own, own / "config.json", tmp_path / "other.json"))
    ]
    assert [target.label for target in targets] == ["mine", "mine", "other"]
    assert len({target.fingerprint for target in targets}) == 1
    assert json.loads((tmp_path / "0" / "config.json").read_text()) == PRESETS["tiny"]


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    wrong = {
        "hybrid-kdaa": "neither a preset nor a config.json; did you mean 'hybrid-kda'?",
        str(tmp_path): "no config.json in",
        str(tmp_path / "broken.json"): "not valid JSON",
        str(tmp_path / "list.json"): "no model_type",
    }
    for name, words in wrong.items():
        with pytest.raises(ConfigError) as caught:
            write_target(name, tmp_path / "out")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "tiny" in preset_names()
