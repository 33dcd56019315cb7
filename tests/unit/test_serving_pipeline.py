"""A diffusers pipeline behind the night's contract; tiny random weights, no published ones."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from generator.cli import build_app
from generator.nightly.in_process import pipeline_context
from generator.pigeon.checkpoint import read_config
from generator.serving.api import AnswerRequest, InferenceRejected, InferenceUnavailable, PictureRequest
from generator.serving.doctor import PROBES
from generator.serving.pipeline.answers import answer_task, mix
from generator.serving.pipeline.folders import check_folders, versions_of
from generator.serving.pipeline.image_prompt import (
    BadCodes,
    ImagePrompt,
    image_codes,
    image_embedding,
    parse_prompt,
    prompt_codes,
)
from generator.serving.pipeline.model import ServedPipeline
from schemas.errors import InputError, ModelError, Refused
from schemas.preferences import PromptSnapshot
from schemas.runtime.checkup import look
from schemas.settings import Settings, load_settings
from schemas.settings_models import PipelineSettings
from tests.support.fake_pigeon import FakePigeon
from tests.support.served_contract import check_contract, pictures, prompt_of
from tests.support.tiny_pipeline import EMBEDDING, tiny_pipeline

# diffusers 0.42's EulerDiscreteScheduler makes an array of a tensor as numpy 1 did.
EULER = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PipelineSettings:
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def model(tiny: PipelineSettings) -> ServedPipeline:
    return ServedPipeline(chosen(tiny))


def chosen(pipeline: PipelineSettings, **changes: object) -> Settings:
    """Settings by which a night draws with a pipeline."""
    return load_settings(models={"preset": "pipeline", "pipeline": {**pipeline.model_dump(), **changes}})


def copied(tiny: PipelineSettings, folder: Path) -> PipelineSettings:
    """The same pipeline as files that a test may change."""
    assert tiny.folder
    shutil.copytree(tiny.folder.parent, folder / "copy")
    paths = {
        name: folder / "copy" / path.name
        for name in ("folder", "ip_adapter", "image_encoder", "scorer")
        if (path := getattr(tiny, name))
    }
    return tiny.model_copy(update=paths)


def snapshot(history: list[tuple[int, ...]], reference: tuple[int, ...]) -> PromptSnapshot:
    return PromptSnapshot(
        history_titles=("film",) * len(history),
        history_tokens=tuple(history),
        title="T",
        description="D",
        reference_tokens=reference,
    )


def request(prompt: PromptSnapshot, *grid: tuple[float, float], adapter: int = 1) -> AnswerRequest:
    alphas, temperatures = zip(*grid, strict=True)
    return AnswerRequest("r/u/i", prompt, alphas, temperatures, 7, adapter)


# --- the contract ---


def test_a_stable_diffusion_pipeline_holds_to_the_contract(tiny: PipelineSettings, model: ServedPipeline) -> None:
    check_contract(model, ServedPipeline(chosen(tiny)))


@pytest.mark.filterwarnings(EULER)
def test_an_xl_pipeline_holds_to_the_contract(tmp_path: Path) -> None:
    settings = chosen(tiny_pipeline(tmp_path, xl=True))
    check_contract(ServedPipeline(settings), ServedPipeline(settings))


def test_the_nights_test_double_holds_to_the_contract() -> None:
    check_contract(FakePigeon(), FakePigeon())


def test_a_picture_shows_text_history_and_noise(model: ServedPipeline) -> None:
    asked = request(prompt_of(model, pictures(4)), (0.0, 0.0))
    prompt = parse_prompt(model.answer(asked).answers[0].tokens, EMBEDDING)
    others = [
        ImagePrompt(prompt.embedding, "another text", prompt.noise),
        ImagePrompt(prompt.embedding[::-1].copy(), prompt.text, prompt.noise),
    ]
    first, *rest = model.draw_pictures([PictureRequest(prompt_codes(one), 5) for one in (prompt, *others)])
    assert all(np.abs(first.image.astype(int) - other.image).mean() > 1 for other in rest)


def test_a_drawing_ends_at_its_deadline(model: ServedPipeline) -> None:
    codes = prompt_codes(ImagePrompt(np.ones(EMBEDDING, np.float32), "t", 0))
    with pytest.raises(InferenceUnavailable, match=r"triton\.inference_timeout_seconds"):
        model.draw_pictures([PictureRequest(codes, 1)], deadline_seconds=0.0)


# --- codes ---


def test_codes_are_those_worked_out_by_hand() -> None:
    embedding = np.array([1.0, -0.5, 0.25], np.float32)
    # 1.0 as float32 is 0x3f800000; levels 512 + 511, 512 - 256, 512 + 128, ten bits each.
    assert image_codes(embedding) == (0x3F800000, 1023 << 20 | 256 << 10 | 640)
    assert prompt_codes(ImagePrompt(embedding, "ab", 3)) == (3, 2, 0x616200, 0x3F800000, 1023 << 20 | 256 << 10 | 640)


@pytest.mark.parametrize("width", [1, 20, 1024])
@pytest.mark.parametrize("text", ["", "a", "Amélie", "千と千尋の神隠し"])
def test_a_prompt_comes_back_from_its_codes(width: int, text: str) -> None:
    embedding = np.random.default_rng(width).normal(size=width).astype(np.float32)
    codes = prompt_codes(ImagePrompt(embedding, text, 9))
    back = parse_prompt(codes, width)
    assert (back.text, back.noise) == (text, 9)
    assert np.abs(back.embedding - embedding).max() <= np.abs(embedding).max() / 1022 * 1.001
    assert prompt_codes(back) == codes
    assert np.array_equal(image_embedding(codes, width), back.embedding)  # a drawn poster can stand in a history
    assert max(codes) < 2**31


@pytest.mark.parametrize(
    "codes",
    [(), (0,), (1, 2, 3), (0, -1), (0, 3, 0xFFFFFF, *image_codes(np.ones(4, np.float32))), (0, 0, 1 << 30, 1, 1)],
    ids=["none", "one", "too few", "negative", "not UTF-8", "of another model"],
)
def test_codes_of_another_model_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(BadCodes):
        parse_prompt(codes, 4)


@pytest.mark.parametrize("entry", [0.0, math.nan, math.inf])
def test_an_embedding_that_says_nothing_has_no_codes(entry: float) -> None:
    with pytest.raises(ValueError, match="not finite, or all zero"):
        image_codes(np.full(4, entry, np.float32))


# --- answers ---


def test_alpha_leads_from_the_reference_to_the_history() -> None:
    history = np.array([[4, 0, 0], [0, 4, 0]], np.float32)
    reference = np.array([0, 0, 2], np.float32)
    assert mix(history, reference, 0.0) == pytest.approx([0, 0, 2])
    assert mix(history, reference, 1.0) == pytest.approx([4 / math.sqrt(2), 4 / math.sqrt(2), 0])  # as long as each
    half = mix(history, reference, 0.5)
    assert half == pytest.approx(3 / math.sqrt(3) * np.ones(3))  # (1, 1, 1) at length (4 + 2) / 2


def test_noise_is_sampled_evenly_and_log_pi_prefers_none() -> None:
    codes = image_codes(np.ones(4, np.float32))
    settings = PipelineSettings(noises=4)
    asked = request(snapshot([codes] * 3, codes), (0.0, 0.0), *[(0.5, 1.0)] * 400)
    greedy, *sampled = answer_task(asked, 4, settings).answers
    assert (greedy.tokens[0], greedy.sampling_logprob) == (0, 0.0)
    counts = np.bincount([one.tokens[0] for one in sampled], minlength=4)
    assert counts.tolist() == pytest.approx([100] * 4, abs=4 * math.sqrt(400 * 0.25 * 0.75))
    assert {one.logprob for one in (greedy, *sampled)} == {-math.log(4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": (1.5,)}, "alphas"),
        ({"alphas": ()}, "alphas"),
        ({"temperatures": ()}, "temperatures"),
        ({"seed": -1}, "seed"),
        ({"adapter_version": 2}, "adapter 2"),
        ({"prompt": snapshot([], (1, 2))}, "history_tokens"),
        ({"prompt": snapshot([(1, 2)], (1, 2))}, "codes"),
    ],
)
def test_a_wrong_request_is_rejected_with_its_field(change: dict[str, object], message: str) -> None:
    codes = image_codes(np.ones(9, np.float32))
    good = {"task_id": "t", "prompt": snapshot([codes], codes), "alphas": (0.0,), "temperatures": (0.0,), "seed": 1}
    with pytest.raises(InferenceRejected, match=message):
        answer_task(AnswerRequest(**{"adapter_version": 1, **good, **change}), 9, PipelineSettings())  # type: ignore[arg-type]


def test_the_text_names_fields_that_there_are() -> None:
    codes = image_codes(np.ones(4, np.float32))
    settings = PipelineSettings(text="poster of {title}: {description}")
    (answer,) = answer_task(request(snapshot([codes], codes), (0.0, 0.0)), 4, settings).answers
    assert parse_prompt(answer.tokens, 4).text == "poster of T: D"
    with pytest.raises(ValidationError, match=r"\{user\} is unknown"):
        PipelineSettings(text="for {user}")


# --- what results are known by ---


def test_versions_change_with_what_they_stand_for_and_nothing_else(tiny: PipelineSettings, tmp_path: Path) -> None:
    copy = copied(tiny, tmp_path)
    assert copy.folder
    assert copy.scorer

    def versions(settings: PipelineSettings) -> tuple[str, str, str]:
        found = versions_of(check_folders(settings), settings, "fp32")
        return found.tokenizer_version, found.drawing_version, found.base_weights

    def changed(settings: PipelineSettings) -> list[bool]:
        return [one != other for one, other in zip(versions(settings), before, strict=True)]

    before = versions(tiny)
    assert changed(copy) == [False, False, False]
    (copy.folder / "unet" / "README.md").write_text("words")
    assert changed(copy) == [False, False, False]
    for field, value in (("steps", 3), ("scale", 0.5), ("guidance", 1.0), ("side", 64), ("negative", "ugly")):
        assert changed(tiny.model_copy(update={field: value})) == [False, True, False]
    for field, value in (("text", "a {title}"), ("noises", 2), ("least_history", 0.1)):
        assert changed(tiny.model_copy(update={field: value})) == [False, False, True]
    schedule = copy.folder / "scheduler" / "scheduler_config.json"
    schedule.write_text(schedule.read_text().replace('"steps_offset": 1', '"steps_offset": 2'))
    assert changed(copy) == [False, True, False]
    (copy.scorer / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}')
    assert changed(copy) == [True, True, True]


# --- folders that cannot be drawn with ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": None}, r"models\.pipeline\.folder: is empty; set PIGEON_MODELS__PIPELINE__FOLDER"),
        ({"folder": Path("/nowhere")}, r"models\.pipeline\.folder /nowhere: no model_index\.json there"),
        ({"ip_adapter": None}, r"models\.pipeline\.ip_adapter: is empty"),
        ({"ip_adapter": Path("/nowhere.bin")}, r"/nowhere\.bin: is no \.safetensors file"),
        ({"image_encoder": None}, r"models\.pipeline\.image_encoder .*image_encoder: no config\.json there"),
        ({"scorer": None}, r"models\.pipeline\.scorer: is empty"),
    ],
)
def test_what_is_no_pipeline_is_refused_by_setting(
    tiny: PipelineSettings, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ServedPipeline(chosen(tiny, **change))


def test_other_kinds_of_folders_are_named(tiny: PipelineSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"models\.pipeline\.scorer .*: its model_type is clip_vision_model"):
        ServedPipeline(chosen(tiny, scorer=tiny.image_encoder))
    copy = copied(tiny, tmp_path)
    assert copy.folder
    index = copy.folder / "model_index.json"
    shutil.rmtree(copy.folder / "vae")
    with pytest.raises(InputError, match=r"vae/ is missing"):
        ServedPipeline(chosen(copy))
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxPipeline"}))
    with pytest.raises(InputError, match="is a FluxPipeline; StableDiffusionPipeline or"):
        ServedPipeline(chosen(copy))
    index.write_text("[]")
    with pytest.raises(InputError, match="holds no JSON object"):
        ServedPipeline(chosen(copy))


def test_an_ip_adapter_that_does_not_fit_says_what_it_is_for(tiny: PipelineSettings, tmp_path: Path) -> None:
    assert tiny.ip_adapter
    tensors = load_file(tiny.ip_adapter)
    path = tmp_path / "other.safetensors"

    def refused(message: str, changed: dict[str, object]) -> None:
        save_file(changed, path)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match=message):
            ServedPipeline(chosen(tiny, ip_adapter=path)).text_embeddings(["a"])

    projection = "image_proj.proj.weight"
    refused("is no plain IP-Adapter", {name: value for name, value in tensors.items() if name != projection})
    refused("takes embeddings of 10, the image encoder", {**tensors, projection: tensors[projection][:, :10].clone()})
    refused("cross_attention_dim 16, the pipeline's has 32", {**tensors, projection: tensors[projection][:64].clone()})
    path.write_bytes(b"not tensors")
    with pytest.raises(ModelError, match=r"other\.safetensors: cannot be loaded"):
        ServedPipeline(chosen(tiny, ip_adapter=path)).text_embeddings(["a"])


@pytest.mark.parametrize("part", ["pipeline/unet", "pipeline/text_encoder", "image_encoder", "scorer"])
def test_weights_that_are_missing_are_not_filled_with_random_numbers(
    tiny: PipelineSettings, tmp_path: Path, part: str
) -> None:
    copy = copied(tiny, tmp_path)
    assert copy.folder
    (file,) = (copy.folder.parent / part).glob("*.safetensors")
    tensors = load_file(file)
    del tensors[sorted(name for name in tensors if name.endswith("weight"))[0]]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{part}: lacks the weights "):
        ServedPipeline(chosen(copy)).text_embeddings(["a"])


# --- what a pipeline is not for ---


@pytest.mark.parametrize(
    "arguments",
    [("retrain",), ("models", "build"), ("models", "check"), ("train", "align", "--dataset", "d", "--out", "o")],
)
def test_commands_of_pigeons_weights_refuse_a_pipeline(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIGEON_MODELS__PRESET", "pipeline")
    result = CliRunner().invoke(build_app(), arguments)
    assert isinstance(result.exception, Refused), result.output
    assert "models.preset is pipeline: it draws nights, and is neither trained nor served" in str(result.exception)


def test_a_pipeline_is_no_checkpoint(tiny: PipelineSettings) -> None:
    assert tiny.folder
    with pytest.raises(ModelError, match="is a pipeline of diffusers, which can draw nights"):
        read_config(tiny.folder)


def test_rays_workers_do_not_draw_with_a_pipeline(tiny: PipelineSettings) -> None:
    settings = chosen(tiny)
    ray = settings.model_copy(update={"night": settings.night.model_copy(update={"engine": "ray"})})
    with pytest.raises(InputError, match=r"night\.engine is ray: a pipeline"):
        pipeline_context(ray, lambda: pytest.fail("announces nothing"), lambda line: None, None)


def test_the_doctor_looks_at_the_folders_and_asks_no_triton(tiny: PipelineSettings) -> None:
    assert [(found.subject, found.verdict) for found in look(PROBES, chosen(tiny))] == [("pipeline", "ok")]
    (found,) = look(PROBES, chosen(tiny, scorer=None))
    assert (found.verdict, found.exit_code) == ("wrong", InputError.exit_code)
    assert "models.pipeline.scorer: is empty" in found.text
