"""The cache of text embeddings: what the stock pipeline itself would say of every caption, without the pipeline."""

import json
import shutil
import sys

import diffusers
import pytest
import torch
from small_pipelines import TOKENS
from transformers import CLIPTextModel, CLIPTokenizer

from edgediff.encoding import prompts
from edgediff.encoding.prompts import PromptCache
from edgediff.errors import BadInputError, CorruptArtifactError, MissingExtraError, StageFailedError

CAPTIONS = ["a red", "red", "", "a red", "b", "red a"]
ALL = torch.arange(len(CAPTIONS))
HALF = {"rtol": 2**-10, "atol": 1e-6}  # it keeps 11 bits


@pytest.fixture
def encode(teachers, tmp_path, output):
    """A function → the cache of captions by the teacher of a name or folder."""

    def run(teacher="sd", captions=CAPTIONS, folder=tmp_path / "prompts", batch_size=2):
        place = teachers(teacher) if isinstance(teacher, str) else teacher
        return prompts.encode(folder, captions, place, batch_size=batch_size, output=output)

    return run


@pytest.fixture
def a_copy(teachers, tmp_path):
    """A copy of a teacher, to be spoilt."""

    def of(name="sd"):
        return shutil.copytree(teachers(name), tmp_path / f"copy of {name}")

    return of


def stock(folder, captions, without, **options):
    """What the stock pipeline says of captions, and of none; `without` names the parts that it does not have."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(without))
    with torch.no_grad():
        said = pipeline.encode_prompt(
            captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **options
        )
    return said[::2], said[1::2]


def test_embeddings_are_the_text_encoders(encode, teachers):
    cache = encode()
    tokenizer = CLIPTokenizer.from_pretrained(teachers("sd") / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(teachers("sd") / "text_encoder")
    tokens = tokenizer(CAPTIONS, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    assert len(tokens.input_ids.unique()) == 5  # the beginning, the end, and three of letters and words
    with torch.no_grad():
        expected = encoder(tokens.input_ids).last_hidden_state
    told = cache(ALL)
    assert list(told) == ["encoder_hidden_states"] and not cache.framing
    assert told["encoder_hidden_states"].dtype == torch.float32
    torch.testing.assert_close(told["encoder_hidden_states"], expected, **HALF)
    torch.testing.assert_close(cache.unconditional(3)["encoder_hidden_states"], expected[[2, 2, 2]], **HALF)


@pytest.mark.parametrize(
    ("teacher", "pooled", "without", "options"),
    [
        ("sdxl", "text_embeds", (), {}),
        ("sd3", "pooled_projections", (), {"prompt_2": None, "prompt_3": None}),
        (
            "sd3 without t5",
            "pooled_projections",
            ("text_encoder_3", "tokenizer_3"),
            {"prompt_2": None, "prompt_3": None},
        ),
    ],
)
def test_embeddings_of_several_encoders_are_the_stock_pipelines(encode, teachers, teacher, pooled, without, options):
    cache = encode(teacher)
    captioned = [index for index, caption in enumerate(CAPTIONS) if caption]
    said, unguided = stock(teachers(teacher), [CAPTIONS[index] for index in captioned], without, **options)
    told, nothing = cache(torch.tensor(captioned)), cache.unconditional(len(captioned))
    assert list(told) == ["encoder_hidden_states", pooled] and cache.framing == (teacher == "sdxl")
    for found, expected in zip((*told.values(), *nothing.values()), (*said, *unguided), strict=True):
        torch.testing.assert_close(found, expected, **HALF)
    assert bool(nothing[pooled].any()) == (teacher != "sdxl")  # where the pipeline has zeros instead
    assert all(torch.equal(cache(torch.tensor([2]))[name], rows[:1]) for name, rows in nothing.items())


def test_every_caption_has_one_row(encode, output):
    cache = encode()
    assert len(cache) == 6 and len(cache.rows) == 5
    assert output.shown == [("encode prompts", 5, 0)] and output.advanced == 5
    listed = json.loads((cache.rows.folder / "captions.json").read_text())
    assert listed == {"texts": ["", "a red", "red", "b", "red a"], "rows": [1, 2, 0, 1, 3, 4]}


def test_captions_that_clip_does_not_read_to_their_end_are_counted(encode, output, capfd):
    encode(captions=["red " * 20, "red", "a " * 6, "a " * 7])
    assert output.said == ["captions longer than CLIP reads, whose end is left out: 2 of 4"]
    encode(captions=["red " * 20, "red", "a " * 6, "a " * 7])  # nothing was encoded, and nothing said
    assert len(output.said) == 1
    assert "truncated" not in capfd.readouterr().err


def test_once_encoded_no_text_encoder_is_needed(encode, a_copy):
    teacher = a_copy()
    cache = encode(teacher)
    expected = cache(ALL)["encoder_hidden_states"]
    shutil.rmtree(teacher)
    opened = PromptCache.open(cache.rows.folder)
    assert torch.equal(opened(ALL)["encoder_hidden_states"], expected) and opened.sha256 == cache.sha256


def test_an_interrupted_encoding_goes_on_to_the_same_bytes(encode, tmp_path, monkeypatch, output):
    monkeypatch.setattr("edgediff.encoding.store.SHARD_BYTES", 200)  # two rows of 8 tokens x 8 halves
    whole = encode(folder=tmp_path / "straight")
    monkeypatch.setattr(output, "advance", stop_at(output, 4))
    with pytest.raises(KeyboardInterrupt):
        encode()
    monkeypatch.undo()
    monkeypatch.setattr("edgediff.encoding.store.SHARD_BYTES", 200)
    with pytest.raises(BadInputError, match="the prompts cache is not finished, it has 2 of 5 rows"):
        PromptCache.open(tmp_path / "prompts")
    assert encode().sha256 == whole.sha256
    assert output.shown[-1] == ("encode prompts", 5, 2)


def stop_at(output, rows):
    """An `advance` that is interrupted by the user when so many rows are done."""
    done = []

    def advance(count=1, note=""):
        done.append(count)
        if sum(done) >= rows:
            raise KeyboardInterrupt

    return advance


def test_a_cache_of_other_captions_or_text_encoders_is_refused_by_name(encode):
    encode()
    with pytest.raises(BadInputError, match="the prompts cache was made with another captions "):
        encode(captions=CAPTIONS[::-1])
    with pytest.raises(BadInputError, match="the prompts cache was made with another text encoders "):
        encode("other sd")


def test_the_tokenizer_is_part_of_the_text_encoders(encode, a_copy):
    teacher = a_copy()
    encode(teacher)
    config = teacher / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace(f'"model_max_length": {TOKENS}', '"model_max_length": 6'))
    with pytest.raises(BadInputError, match="another text encoders "):
        encode(teacher)


def test_a_damaged_list_of_captions_is_written_again(encode):
    cache = encode()
    listed = cache.rows.folder / "captions.json"
    whole = listed.read_bytes()
    listed.write_bytes(whole[:20])
    with pytest.raises(CorruptArtifactError, match=r"captions\.json"):
        PromptCache.open(cache.rows.folder)
    encode()
    assert listed.read_bytes() == whole


@pytest.mark.parametrize("name", ["text_encoder", "tokenizer"])
def test_a_teacher_without_a_text_encoder_or_tokenizer(encode, a_copy, name):
    teacher = a_copy()
    shutil.rmtree(teacher / name)
    with pytest.raises(BadInputError, match=f"the teacher's folder has no {name.replace('_', ' ')}: ") as caught:
        encode(teacher)
    assert "fetch the whole pipeline, or give an existing prompts cache" in caught.value.hint


def test_a_pipeline_whose_text_encoders_were_left_out(encode, a_copy):
    teacher = a_copy()
    index = json.loads((teacher / "model_index.json").read_text())
    emptied = {**index, "text_encoder": [None, None], "tokenizer": [None, None]}
    (teacher / "model_index.json").write_text(json.dumps(emptied))
    with pytest.raises(BadInputError, match="the teacher's folder has no text encoder: "):
        encode(teacher)


def test_a_pipeline_that_reads_no_text(encode, small_teacher):
    with pytest.raises(BadInputError, match="captions cannot be encoded for a DDPMPipeline") as caught:
        encode(small_teacher)
    assert "StableDiffusionXLPipeline" in caught.value.hint


def test_bad_text_encoders_are_refused_in_one_sentence(encode, a_copy, tmp_path):
    def refusal(kind, name, change):
        teacher = a_copy()
        path = teacher / name
        change(path)
        with pytest.raises(kind) as caught:
            encode(teacher, folder=tmp_path / "never")
        shutil.rmtree(teacher)
        return caught.value

    weights = "text_encoder/model.safetensors"
    error = refusal(BadInputError, weights, lambda path: path.rename(path.with_name("pytorch_model.bin")))
    assert "weights are pickled" in error.message
    assert "weights not found" in refusal(BadInputError, weights, lambda path: path.unlink()).message
    assert "config not found" in refusal(BadInputError, "text_encoder/config.json", lambda path: path.unlink()).message
    error = refusal(CorruptArtifactError, weights, lambda path: path.write_bytes(path.read_bytes()[:500]))
    assert "do not fit each other" in error.message
    error = refusal(
        CorruptArtifactError,
        "text_encoder/config.json",
        lambda path: path.write_text(path.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')),
    )
    assert "missing keys: " in error.hint
    error = refusal(
        CorruptArtifactError, "tokenizer/tokenizer.json", lambda path: path.write_text(path.read_text()[:500])
    )
    assert "tokenizer cannot be read" in error.message
    error = refusal(
        BadInputError,
        "model_index.json",
        lambda path: path.write_text(path.read_text().replace("CLIPTextModel", "CLIPTixtModel")),
    )
    assert "no class `CLIPTixtModel`" in error.message


def test_embeddings_that_half_precision_cannot_hold_stop_it(encode, a_copy):
    from safetensors.torch import load_file, save_file

    teacher = a_copy()
    path = teacher / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    (name,) = [name for name in weights if name.endswith("final_layer_norm.bias")]
    weights[name][0] = 1e5
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(StageFailedError, match="half precision cannot hold: prompts 0 to 1"):
        encode(teacher)


def test_without_transformers_the_extra_is_named(encode, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="encoding captions needs `transformers`") as caught:
        encode()
    assert "edgediff[text]" in caught.value.hint
