"""Proofs that no file runs code: pickles in every place, classes that a config names, templates that try to get out,
tags of YAML, links to elsewhere. Each payload makes a marker file when it runs, and is shown to do so where it may.
"""

import contextlib
import importlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import yaml

from src import task
from src.console.cli import run_main
from src.data import load_items
from src.files.writing import write_json
from src.model import trust
from tests import commands, toys
from tests.made_runs import make_place, stored

pytestmark = [pytest.mark.faults, pytest.mark.trains]

SMALL = ("--epoch", "2", "--batch_size", "4", "--lr", "3e-3", "--device", "cpu")
PICKLES = (
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt", "training_args.bin"),
    *("pytorch_model.bin", "adapter_model.bin", "model.bin", "model.pt", "model.pth", "optimizer.bin", ".metadata"),
    *("pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5", "vocab.pkl", "tokenizer.pkl", "spiece.model"),
)
"""Names under which libraries look for pickles, or once did."""


class Payload:
    """Makes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def pickled(marker: Path, kind: str) -> bytes:
    """The payload as a bare pickle, or in the zip that torch writes."""
    if kind == "bare":
        return pickle.dumps(Payload(marker))
    buffer = io.BytesIO()
    torch.save({"state": Payload(marker), "step": 1}, buffer)
    return buffer.getvalue()


def outcome(command: str, *words: str | Path) -> tuple[int, str]:
    """(exit code, what was said) of a command."""
    out = io.StringIO()
    main = importlib.import_module(command).main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = run_main(lambda: main([str(word) for word in words]))
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert code in (0, 1, 2) and "Traceback" not in out.getvalue(), out.getvalue()
    return code, out.getvalue()


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Must not be there after the test."""
    path = tmp_path / "it_ran"
    yield path
    assert not path.exists()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    task.use(None)
    trust.allow(False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, a prompt, a toy model, and in `results` a run, of adapters."""
    folder = make_place(tmp_path_factory.mktemp("house"))
    with pytest.MonkeyPatch.context() as patch:
        commands.put_runs_into(folder / "results", patch)
        toys.save("qwen2", folder / "model")
        commands.start("run.train", *training(folder, folder / "results" / "lora", "--method", "lora"))
        yield folder


@pytest.fixture(scope="module")
def full(place: Path) -> Path:
    """A run of all weights."""
    run = place / "full" / "run"
    commands.start("run.train", *training(place, run, "--method", "full"))
    return run


@pytest.fixture(params=["lora", pytest.param("full", marks=pytest.mark.thorough)])
def finished(request: pytest.FixtureRequest, place: Path) -> tuple[str, Path]:
    """(method, run), not to be changed."""
    run = request.getfixturevalue("full") if request.param == "full" else place / "results" / "lora"
    return request.param, run


def training(place: Path, run: Path, *more: str) -> list[str]:
    fixed = ["--model_id", str(place / "model"), "--prompt", str(place / "short.yaml"), *SMALL]
    return [*fixed, "--data", str(place / "data"), "--name", "mine", "--save_dir", str(run), *more]


def reading(place: Path, run: Path) -> list[tuple[str, list[str]]]:
    """Every command that reads a run."""
    data = ["--data", str(place / "data")]
    return [
        ("run.test", ["--model_id", str(run), *data, "--split", "dev", "--device", "cpu"]),
        ("run.vote", [str(run), "--split", "dev", *data, "--out", str(run.parent / "voted")]),
        ("run.evaluate", [str(run), "--split", "dev", *data]),
        ("run.export", [str(run), "--split", "dev", *data, "--out", str(run.parent / "out")]),
        ("run.prompts", ["korean", "--runs", str(run), *data]),
        ("run.runs", ["--results", str(run.parent)]),
    ]


def copy(folder: Path, to: Path) -> Path:
    """A fresh copy at `to`."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


def unfinished(run: Path, to: Path) -> Path:
    (copy(run, to) / "record.json").unlink()
    return to


def forge(run: Path, record: dict[str, Any]) -> None:
    """Writes the record as somebody does who wants it to be believed: without the digest of what it said before."""
    write_json(run / "record.json", {key: value for key, value in record.items() if key != "sha256"})


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def put_pickles(folder: Path, marker: Path) -> None:
    """Under every known name that is free, in the folder and those below it."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in PICKLES:
            if not (place / name).exists():
                (place / name).write_bytes(pickled(marker, "torch"))


# Pickles


@pytest.mark.parametrize("kind", ["bare", "torch"])
def test_the_payload_runs_where_it_may(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(pickled(tmp_path / "ran", kind))
    with contextlib.suppress(RuntimeError):  # what it makes is no file of torch's, which is noticed too late
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_finished_run_with_pickles_beside_its_files(
    place: Path, finished: tuple[str, Path], tmp_path: Path, marker: Path
) -> None:
    run = copy(finished[1], tmp_path / "results" / "run")
    put_pickles(run, marker)
    for command, words in reading(place, run):
        code, said = outcome(command, *words)
        assert code == 0, said


@pytest.mark.parametrize("kind", ["bare", pytest.param("torch", marks=pytest.mark.thorough)])
def test_each_file_of_a_finished_run_as_a_pickle(place: Path, tmp_path: Path, marker: Path, kind: str) -> None:
    for name in files(place / "results" / "lora"):
        if name.parts[0] == "checkpoints":
            continue
        run = copy(place / "results" / "lora", tmp_path / "results" / "run")
        (run / name).write_bytes(pickled(marker, kind))
        for command, words in reading(place, run):
            outcome(command, *words)
        assert not marker.exists(), name


@pytest.mark.thorough
def test_an_unfinished_run_with_pickles_beside_its_files(
    place: Path, finished: tuple[str, Path], tmp_path: Path, marker: Path
) -> None:
    method, whole = finished
    run = unfinished(whole, tmp_path / "run")
    put_pickles(run, marker)
    outcome("run.train", *training(place, run, "--method", method))


@pytest.mark.thorough
def test_each_file_of_an_unfinished_run_as_a_pickle(
    place: Path, finished: tuple[str, Path], tmp_path: Path, marker: Path
) -> None:
    method, whole = finished
    failed: dict[str, str] = {}
    for number, name in enumerate(files(whole)):
        run = unfinished(whole, tmp_path / "run")
        (run / name).write_bytes(pickled(marker, ("bare", "torch")[number % 2]))
        try:
            outcome("run.train", *training(place, run, "--method", method))
        except Exception as error:
            failed[str(name)] = repr(error)
        if marker.exists():
            failed[str(name)] = "it ran"
            marker.unlink()
    assert failed == {}


def test_a_model_folder_of_pickles(place: Path, tmp_path: Path, marker: Path) -> None:
    for number, name in enumerate([*files(place / "model"), None]):
        model = copy(place / "model", tmp_path / "model")
        if name is None:
            put_pickles(model, marker)
        else:
            (model / name).write_bytes(pickled(marker, ("bare", "torch")[number % 2]))
        words = ["--model_id", str(model), "--prompt", str(place / "short.yaml"), "--data", str(place / "data")]
        code, said = outcome("run.test", *words, "--split", "dev", "--device", "cpu", "--name", f"n{number}")
        assert code == (2 if name and name.name != "generation_config.json" else 0) or "chat" in str(name), (name, said)
        outcome("run.prompts", "korean", "--runs", str(model), "--data", str(place / "data"))
        run = tmp_path / "trained"
        shutil.rmtree(run, ignore_errors=True)
        outcome("run.train", *training(place, run, "--model_id", str(model), "--limit", "4", "--epoch", "1"))
        assert not marker.exists(), name


def test_weights_of_which_only_a_pickle_is_there(place: Path, tmp_path: Path, marker: Path) -> None:
    model = copy(place / "model", tmp_path / "model")
    (model / "model.safetensors").rename(tmp_path / "weights")
    put_pickles(model, marker)
    code, said = outcome("run.test", "--model_id", model, "--data", place / "data", "--split", "dev")
    assert code == 2 and "Pickles (.bin, .pt, .pth) are not read" in said
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    write_json(model / "model.safetensors.index.json", index)
    code, said = outcome("run.test", "--model_id", model, "--data", place / "data", "--split", "dev")
    assert code == 2 and "pytorch_model.bin" in said


def test_a_corpus_of_pickles(place: Path, tmp_path: Path, marker: Path) -> None:
    data = copy(place / "data", tmp_path / "data")
    put_pickles(data, marker)
    run = place / "results" / "lora"
    assert outcome("run.evaluate", run, "--split", "dev", "--data", data)[0] == 0
    for kind in ("bare", "torch"):
        for split in ("train", "dev", "test"):
            (data / f"data_{split}.json").write_bytes(pickled(marker, kind))
        for command, words in (
            ("run.train", training(place, tmp_path / "new", "--data", str(data))),
            ("run.test", ["--model_id", str(run), "--data", str(data)]),
            ("run.prompts", ["korean", "--lengths", "--data", str(data)]),
        ):
            assert outcome(command, *words)[0] == 2
        with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
            for name in ("train.json", "dev.json", "test.json", "data.pkl"):
                archive.writestr(name, pickled(marker, kind))
        for file in (tmp_path / "corpus.zip", data / "data_train.json"):
            assert outcome("run.prepare_data", file, "--out", tmp_path / "prepared")[0] == 2


# Classes that a config names


def with_code(place: Path, to: Path, marker: Path, **config: Any) -> Path:
    """A copy of the model with Python files that make the marker, and a config that names classes in them."""
    model = copy(place / "model", to)
    text = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: pass\ndef generate(**all): pass\n"
    (model / "custom_generate").mkdir()
    for name in ("own.py", "custom_generate/generate.py", "__init__.py", "sitecustomize.py", "torch.py", "yaml.py"):
        (model / name).write_text(text, encoding="utf-8")
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
    named: dict[str, Any] = {name: "own.Own" for name in classes} | {"AutoTokenizer": ["own.Own", "own.Own"]}
    for file in ("config.json", "tokenizer_config.json", "generation_config.json"):
        keys = json.loads((model / file).read_text(encoding="utf-8")) if (model / file).is_file() else {}
        more = {"auto_map": named, "custom_generate": "own", "trust_remote_code": True, "use_kernels": True}
        write_json(model / file, {**keys, **more, **(config if file == "config.json" else {})})
    return model


def loading(place: Path, model: Path, tmp_path: Path) -> list[tuple[str, list[str]]]:
    """Every command that loads a model which is no run."""
    data, prompt = ["--data", str(place / "data")], ["--prompt", str(place / "short.yaml")]
    cpu = ["--device", "cpu"]
    engine = ["--engine", str(model), "--steps", "1", "--batch_size", "1", "--answer_tokens", "2"]
    return [
        ("run.train", training(place, tmp_path / "new", "--model_id", str(model), "--limit", "4", "--epoch", "1")),
        ("run.test", ["--model_id", str(model), *data, *prompt, *cpu, "--split", "dev", "--name", tmp_path.name]),
        ("run.prompts", ["korean", "--runs", str(model), *data]),
        ("run.prompts", ["--compare", "korean", "korean+cot", "--runs", str(model), *data, *cpu, "--limit", "2"]),
        ("run.optimize_prompt", ["--run", str(model), *engine, *data, *cpu, "--out", str(tmp_path / "optimized")]),
    ]


@pytest.mark.parametrize(
    "searches",
    # The search imports textgrad, which takes longer than all other commands.
    [pytest.param(False, id="trained, scored, shown"), pytest.param(True, id="searched", marks=pytest.mark.thorough)],
)
def test_a_model_of_a_known_kind_with_code_beside_it(place: Path, tmp_path: Path, marker: Path, searches: bool) -> None:
    model = with_code(place, tmp_path / "own", marker)
    *others, search = loading(place, model, tmp_path)
    for command, words in [search] if searches else others:
        outcome(command, *words)
        assert not marker.exists(), command
    trained = (tmp_path / "new" / "record.json").is_file()
    assert trained is not searches, "it is trained with transformers' own classes"


def test_a_model_of_its_own_kind(place: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    model = with_code(place, tmp_path / "own", marker, model_type="own_model")
    for command, words in loading(place, model, tmp_path):
        code, said = outcome(command, *words)
        assert code == 2 and "--trust_remote_code" in said, (command, said)


@pytest.mark.parametrize("kind", ["qwen2", "own_model"])
def test_a_recipe_or_a_record_that_asks_for_code(place: Path, tmp_path: Path, marker: Path, kind: str) -> None:
    model = with_code(place, tmp_path / "own", marker, model_type=kind)
    recipe = tmp_path / "recipes" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text(f"model_id: {model}\nmethod: lora\ntrust_remote_code: true\n", encoding="utf-8")
    run = copy(place / "results" / "lora", tmp_path / "results" / "run")
    record = stored(run)
    record["recipe"] |= {"trust_remote_code": True, "model_id": str(model)}
    forge(run, record)
    stopped = unfinished(run, tmp_path / "results" / "stopped")
    (stopped / "recipe.yaml").write_text(yaml.safe_dump(record["recipe"]), encoding="utf-8")
    data, cpu = ["--data", str(place / "data")], ["--device", "cpu"]
    engine = ["--engine", str(place / "model"), *data, *cpu, "--out", str(tmp_path / "optimized")]
    asking = [
        ("run.train", ["--recipe", str(recipe), *data, "--save_dir", str(tmp_path / "new")]),
        ("run.train", ["--recipe", str(stopped / "recipe.yaml"), *data, "--save_dir", str(stopped)]),
        ("run.train_base", ["--recipe", str(recipe), *data, "--save_dir", str(tmp_path / "new")]),
        ("orpo.orpo_train", ["--recipe", str(recipe), *data, "--save_dir", str(tmp_path / "new")]),
        ("orpo.orpo_data", ["--recipe", str(recipe), *data]),
        ("run.test", ["--recipe", str(recipe), *data, *cpu]),
        ("run.test", ["--model_id", str(run), *data, *cpu]),
        ("run.prompts", ["korean", "--runs", str(recipe), *data]),
        ("run.prompts", ["korean", "--runs", str(run), *data]),
        ("run.prompts", ["korean", "--lengths", "--runs", str(run), *data]),
        ("run.prompts", ["--compare", "korean", "--runs", str(recipe), str(run), *data, *cpu]),
        ("run.optimize_prompt", ["--run", str(recipe), *engine]),
        ("run.optimize_prompt", ["--run", str(run), *engine]),
        ("run.reproduce", ["--recipes", str(recipe.parent), *data, "--dry_run"]),
        ("run.reproduce", ["--recipes", str(recipe.parent), *data]),
    ]
    for command, words in asking:
        code, said = outcome(command, *words)
        assert code == 2 and said.count("\n") == 1, (command, said)
        assert "a file asks to run Python code" in said and "add --trust_remote_code" in said, (command, said)
    for command, words in reading(place, run)[1:4]:  # these load no model
        outcome(command, *words)


def test_any_class_as_the_tokenizer(place: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes any of its names for a tokenizer's class, and loads that without our answer on code."""
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor", "RagRetriever", "pipeline", "logging", "os"):
        model = with_code(place, tmp_path / "own", marker, model_type="own_model", tokenizer_class=name)
        keys = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        for known in (True, False):
            config = json.loads((place / "model" / "config.json").read_text(encoding="utf-8"))
            write_json(model / "config.json", config if known else {**config, "auto_map": {"AutoModel": "own.Own"}})
            del keys["auto_map"]
            write_json(model / "tokenizer_config.json", {**keys, "tokenizer_class": name})
            keys["auto_map"] = None
            outcome("run.prompts", "korean", "--runs", model, "--data", place / "data")
            assert not marker.exists(), name


def test_odd_keys_of_json(place: Path, tmp_path: Path, marker: Path) -> None:
    touch = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    odd: dict[str, Any] = {
        "__class__": "os.system",
        "__reduce__": ["os.system", [f"touch {marker}"]],
        "py/object": "os.system",
        "py/reduce": [{"py/function": "os.system"}, {"py/tuple": [f"touch {marker}"]}],
        "__init__": {"__globals__": touch},
        "_target_": "os.system",
        "": touch,
    }
    run = copy(place / "results" / "lora", tmp_path / "results" / "run")
    for name in [path for path in files(run) if path.suffix == ".json" and path.parts[0] != "checkpoints"]:
        there = json.loads((run / name).read_text(encoding="utf-8"))
        if isinstance(there, dict):
            write_json(run / name, {key: value for key, value in {**there, **odd}.items() if key != "sha256"})
    adapter = run / "adapter" / "adapter_config.json"
    keys = json.loads(adapter.read_text(encoding="utf-8"))
    write_json(adapter, {**keys, "megatron_config": {"a": 1}, "megatron_core": "megatron.own", "auto_mapping": odd})
    for command, words in reading(place, run):
        outcome(command, *words)
    data = copy(place / "data", tmp_path / "data")
    for split in ("train", "dev"):
        items = json.loads((data / f"data_{split}.json").read_text(encoding="utf-8"))
        write_json(data / f"data_{split}.json", [{**item, **odd, "input": {**item["input"], **odd}} for item in items])
        assert len(load_items(data / f"data_{split}.json")) == len(items)
    outcome("run.evaluate", place / "results" / "lora", "--split", "dev", "--data", data)


# Templates

SUBCLASSES = "''.__class__.__mro__[1].__subclasses__()"
ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ lipsum.__globals__['os'].system('touch MARKER') }}",
    "{{ lipsum.__globals__.os.popen('touch MARKER').read() }}",
    "{{ namespace.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ joiner.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ (lipsum|attr('__globals__'))['os'].system('touch MARKER') }}",
    "{{ (cycler|attr('__init__')|attr('__globals__'))['os'].system('touch MARKER') }}",
    "{{ lipsum|attr('\\x5f\\x5fglobals\\x5f\\x5f')|attr('get')('os')|attr('system')('touch MARKER') }}",
    "{{ [lipsum]|map(attribute='__globals__')|map(attribute='os')|map('attr', 'system')|list }}"
    "{% for o in [lipsum]|map(attribute='__globals__') %}{{ o['os'].system('touch MARKER') }}{% endfor %}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch MARKER') }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.system('touch MARKER') }}",
    f"{{% for c in {SUBCLASSES} %}}{{% if c.__name__ == '_wrap_close' %}}"
    "{{ c.__init__.__globals__['system']('touch MARKER') }}{% endif %}{% endfor %}",
    "{% set g = dialogue.__class__.__base__.__subclasses__() %}{{ g }}"
    "{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{% set s = '{0.__init__.__globals__[os]}'.format(cycler) %}{{ s }}"
    "{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{{ '{0.__globals__}'.format(lipsum) }}{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{{ ('{x.__globals__[os]}'|attr('format_map'))({'x': lipsum}) }}{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{{ '{x.__globals__}'.format_map({'x': lipsum}) }}{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{% set f = {'m': '{0.__globals__}'.format}.m %}{{ f(lipsum) }}{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{% import 'os' as os %}{{ os.system('touch MARKER') }}",
    "{% include '/etc/passwd' %}{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "{{ [].append.__self__.__class__ }}{{ lipsum.__globals__.os.system('touch MARKER') }}",
)
"""Ways out of Jinja2 that are known; those that only look at what they should not see go on to one that acts."""
LEAKS = (
    "{{ '{0.__globals__}'.format(lipsum) }}",
    "{{ '%s' % lipsum.__globals__ }}",
    "{% set f = '{0.__globals__}'.format %}{{ f(lipsum) }}",
    "{% set f = {'m': '{0.__globals__}'.format}.m %}{{ f(lipsum) }}",
    "{{ ('{0.__globals__}'|attr('format'))(lipsum) }}",
    "{{ ['{0.__globals__}']|map('format', lipsum)|list }}",
    "{{ '{x.__globals__}'.format_map({'x': lipsum}) }}",
    "{{ ('{x.__globals__}'|attr('format_map'))({'x': lipsum}) }}",
    "{{ lipsum|attr('__globals__') }}",
    "{{ [lipsum]|map(attribute='__globals__')|list }}",
)
INNER = "jinja2.utils"
"""What a look at the globals of `lipsum` shows."""


def prompt_with(system: str = "", user: str = "", answer: str = "") -> str:
    usual = yaml.safe_load(toys.SHORT)
    changed = {"system": system, "user": user, "answer": answer}
    return yaml.safe_dump({**usual, **{key: value for key, value in changed.items() if value}}, allow_unicode=True)


def test_the_escapes_work_where_they_may(tmp_path: Path) -> None:
    worked = 0
    for number, text in enumerate(ESCAPES):
        ran = tmp_path / f"ran{number}"
        try:
            jinja2.Environment().from_string(text.replace("MARKER", str(ran))).render(dialogue=[])
        except Exception:
            continue
        worked += ran.exists()
    assert worked >= 14
    assert sum(INNER in jinja2.Environment().from_string(text).render() for text in LEAKS[:1]) == 1


@pytest.mark.parametrize("part", ["system", "user", "answer"])
def test_a_prompt_does_not_get_out(place: Path, tmp_path: Path, marker: Path, part: str) -> None:
    file = tmp_path / "theirs.yaml"
    for text in (*ESCAPES, *LEAKS):
        usual = yaml.safe_load(toys.SHORT).get(part, "")
        changed = usual + text.replace("MARKER", str(marker))
        file.write_text(prompt_with(**{part: changed}), encoding="utf-8")
        code, said = outcome("run.prompts", file, "--data", place / "data")
        assert INNER not in said and not marker.exists(), text
        assert code == 2 or text in LEAKS, (text, said)


def test_a_chat_template_does_not_get_out(place: Path, tmp_path: Path, marker: Path) -> None:
    model = copy(place / "model", tmp_path / "model")
    (template,) = model.glob("chat_template.jinja")
    usual = template.read_text(encoding="utf-8")
    for text in (*ESCAPES, *LEAKS):
        changed = usual + text.replace("MARKER", str(marker))
        template.write_text(changed, encoding="utf-8")
        said = outcome("run.prompts", "korean", "--runs", model, "--data", place / "data")[1]
        assert INNER not in said and not marker.exists(), text
        (tmp_path / "theirs.jinja").write_text(changed, encoding="utf-8")
        words = ["korean", "--runs", str(place / "model"), "--data", str(place / "data")]
        said = outcome("run.prompts", *words, "--chat_template", tmp_path / "theirs.jinja")[1]
        assert INNER not in said and not marker.exists(), text


def test_templates_of_a_record_do_not_get_out(place: Path, tmp_path: Path, marker: Path) -> None:
    run = copy(place / "results" / "lora", tmp_path / "results" / "run")
    record = stored(run)
    for text in ESCAPES[:4]:
        changed = json.loads(json.dumps(record))
        changed["prompt"]["text"] = prompt_with(user=text.replace("MARKER", str(marker)))
        changed["recipe"]["chat_template"] = "{{ messages }}" + text.replace("MARKER", str(marker))
        forge(run, changed)
        for command, words in reading(place, run):
            outcome(command, *words)
        assert not marker.exists(), text


# YAML

TAGS = (
    "!!python/object/apply:os.system ['touch MARKER']",
    "!!python/object/apply:os.mkdir ['MARKER']",
    "!!python/object/new:os.system ['touch MARKER']",
    "!!python/object/apply:subprocess.check_call [['touch', 'MARKER']]",
    '!!python/object/apply:eval [\'__import__("os").system("touch MARKER")\']',
    "{? !!python/object/apply:os.system ['touch MARKER'] : 1}",
)


def test_the_tags_work_where_they_may(tmp_path: Path) -> None:
    for number, text in enumerate(TAGS[:5]):
        ran = tmp_path / f"ran{number}"
        yaml.unsafe_load(text.replace("MARKER", str(ran)))
        assert ran.exists(), text


def test_tags_of_yaml_make_no_objects(place: Path, tmp_path: Path, marker: Path) -> None:
    usual = yaml.safe_load(Path("resource/task.yaml").read_text(encoding="utf-8"))
    data = ["--data", str(place / "data")]
    folder = tmp_path / "recipes"
    folder.mkdir()
    stopped = unfinished(place / "results" / "lora", tmp_path / "results" / "stopped")
    kept = (stopped / "recipe.yaml").read_text(encoding="utf-8")
    for tag in TAGS:
        text = tag.replace("MARKER", str(marker))
        recipe, prompt, own = folder / "mine.yaml", tmp_path / "prompt.yaml", tmp_path / "task.yaml"
        recipe.write_text(f"model_id: {place / 'model'}\nname: {text}\n", encoding="utf-8")
        prompt.write_text(f"{toys.SHORT}\ndescription: {text}\n", encoding="utf-8")
        own.write_text(yaml.safe_dump({**usual, "name": 1}, allow_unicode=True) + f"\nofficial: {text}\n", "utf-8")
        (stopped / "recipe.yaml").write_text(f"{kept}\nlicence: {text}\n", encoding="utf-8")
        for command, words in (
            ("run.train", ["--recipe", str(recipe), *data, "--save_dir", str(tmp_path / "new")]),
            ("run.reproduce", ["--recipes", str(folder), *data, "--dry_run"]),
            ("run.prompts", ["korean", "--runs", str(recipe), *data]),
            ("run.prompts", [str(prompt), *data]),
            ("run.runs", ["--results", str(place / "results"), "--task", str(own)]),
        ):
            code, said = outcome(command, *words)
            assert code == 2 and not marker.exists(), (command, tag, said)
        outcome("run.train", *training(place, stopped, "--method", "lora"))
        assert not marker.exists(), tag


# Links


def linked(run: Path, name: str, target: Path) -> None:
    """Has `name` in the run be a link to its content, which moves to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (run / name).rename(target)
    (run / name).symlink_to(target)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: (folder / path).read_bytes() for path in files(folder)}


def test_a_link_is_read_and_not_written_through(place: Path, tmp_path: Path, marker: Path) -> None:
    run = copy(place / "results" / "lora", tmp_path / "results" / "run")
    for name in ("scores_dev.jsonl", "predictions_dev.json", "record.json"):
        linked(run, name, tmp_path / "elsewhere" / name)
    before = contents(tmp_path / "elsewhere")
    for command, words in reading(place, run):
        code, said = outcome(command, *words)
        assert code == 0, (command, said)
    assert contents(tmp_path / "elsewhere") == before
    assert not (run / "scores_dev.jsonl").is_symlink(), "it is a file of the run's own now"


@pytest.mark.parametrize(
    "name",
    ["checkpoints", "adapter", "recipe.yaml", "inputs.json", "checkpoints/checkpoint-9", "adapter.part", "adapter.old"],
)
def test_a_training_writes_and_deletes_nothing_elsewhere(place: Path, tmp_path: Path, marker: Path, name: str) -> None:
    run = unfinished(place / "results" / "lora", tmp_path / "results" / "run")
    elsewhere = tmp_path / "elsewhere"
    if (run / name).exists():
        linked(run, name, elsewhere / "there")
    else:
        copy(place / "data", elsewhere)
        (run / name).symlink_to(elsewhere)
    before = contents(elsewhere)
    code, said = outcome("run.train", *training(place, run, "--method", "lora"))
    assert code == 2 and "is a link to" in said, said
    assert contents(elsewhere) == before


def test_a_log_that_is_a_link_is_not_written_to(place: Path, tmp_path: Path, marker: Path) -> None:
    from src.console.jobs import run_job

    (tmp_path / "profile").write_text("mine\n", encoding="utf-8")
    (tmp_path / "log.txt").symlink_to(tmp_path / "profile")
    reason = run_job(["true"], tmp_path / "log.txt", {}, lambda event: None, None)  # type: ignore[arg-type]
    assert "log.txt cannot be written" in reason
    assert (tmp_path / "profile").read_text(encoding="utf-8") == "mine\n"
