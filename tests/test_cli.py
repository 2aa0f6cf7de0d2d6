"""The command line: what it prints, what it refuses, and how it ends."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from gleak_core import attacks, clients, data, doctor
from gleak_core.cli import app
from gleak_core.cli.attack import ATTACKS, DEFENCES, defend, threads
from gleak_core.errors import GleakError
from gleak_core.files import ROOT
from gleak_core.publish import book, execute, notebooks
from gleak_core.publish.execute import Event, Outcome

GLEAK = [sys.executable, "-c", "from gleak_core.cli import main; main()"]
FIRST = sorted(notebooks.find())[0]


def gleak(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refuse(*_: Any, **__: Any) -> None:
    """Stand in for what must not run, or for a Ctrl-C in it."""
    raise KeyboardInterrupt


def refused(*words: str | Path, code: int = 2) -> str:
    """Run a command that must fail with one sentence, and return the sentence."""
    result = gleak(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("gleak: ")
    return result.stderr


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "me.png"
    ramp = np.linspace(0, 255, 12 * 9 * 3).reshape(9, 12, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


# --- as a whole --------------------------------------------------------------------------------


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['gleak', '--help']\n"
        "from gleak_core.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('LOADED', *{m.partition('.')[0] for m in sys.modules})"
    )
    command = [sys.executable, "-c", code]
    said, seconds = "", []
    for _ in range(3):  # the best of three: other tests share the cores
        began = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
    help_text, _, loaded = said.partition("LOADED")
    for command in ("doctor", "data", "run", "refresh", "book", "attack", "teach"):
        assert re.search(rf"(?m)^  {command} ", help_text)
    assert not {"torch", "numpy", "matplotlib", "papermill", "pandas"} & set(loaded.split())
    assert min(seconds) < (2.0 if os.environ.get("PYTEST_XDIST_WORKER") else 1.0)


def test_every_command_has_a_help_page() -> None:
    for words in (
        ["doctor"], ["run"], ["refresh"], ["book"], ["attack"],
        ["data"], ["data", "list"], ["data", "fetch"], ["data", "pack"], ["data", "verify"],
        ["teach"], ["teach", "copy"], ["teach", "check"],
    ):  # fmt: skip
        result = gleak(*words, "--help")
        assert result.exit_code == 0, words
        assert result.output.startswith("Usage:")


def test_version() -> None:
    from gleak_core import __version__

    assert gleak("--version").output == f"gleak {__version__}\n"


@pytest.mark.parametrize("words", [["run", "--porfile", "smoke"], ["docter"], ["data", "lisst"]])
def test_a_misspelt_word_is_a_usage_error(words: Sequence[str]) -> None:
    result = gleak(*words)
    assert result.exit_code == 2
    assert "No such" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (GleakError("mend it so"), "gleak: mend it so\n"),
        (ValueError("wrong value"), "gleak: wrong value\n"),
        (
            PermissionError(13, "Permission denied", "/some/file"),
            "gleak: /some/file: Permission denied\n",
        ),
        (MemoryError(), "gleak: not enough memory: use fewer --jobs"),
    ],
)
def test_failures_are_one_sentence_and_debug_shows_more(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    result = gleak("doctor")
    assert result.exit_code == 2
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert gleak("--debug", "doctor").exception is error
    monkeypatch.setenv("GLEAK_DEBUG", "1")
    assert gleak("doctor").exception is error


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "examine", fail)
    assert isinstance(gleak("doctor").exception, ZeroDivisionError)


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from gleak_core import doctor\n"
        "doctor.examine = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['gleak', 'doctor']; from gleak_core.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stderr.strip() == (
        "interrupted; what was finished is kept; run the same command again to go on"
    )


# --- doctor ------------------------------------------------------------------------------------


def test_doctor_prints_a_report() -> None:
    result = gleak("doctor")
    assert result.exit_code == 0
    for topic in doctor.EXAMINATIONS:
        assert f"{topic}\n" in result.output
    assert re.search(r"torch +2\.", result.output)
    assert "more packages as tested" in result.output
    assert "gleak works here" in result.output


def test_doctor_fails_when_something_essential_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [
        doctor.Finding("versions", "torch", "broken", "not installed", "make setup"),
        doctor.Finding("browser", "chromium", "missing", "not here", "apt-get install chromium"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: broken)
    result = gleak("doctor")
    assert result.exit_code == 1
    assert "✗ torch" in result.output
    assert "→ make setup" in result.output
    assert result.output.rstrip().endswith("broken: torch")
    result = gleak("doctor", "--json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert report["works"] is False
    assert report["findings"][0]["cure"] == "make setup"


# --- data --------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sets"
    folder.mkdir()
    monkeypatch.setenv("GLEAK_DATA", str(folder))
    return folder


def test_data_list_names_every_set_and_what_brings_it(home: Path) -> None:
    result = gleak("data", "list")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert set(data.names()) <= set(lines)
    assert lines["faces"].endswith("embedded")
    assert lines["cifar10"].endswith("no → gleak data fetch cifar10")
    assert result.output.rstrip().endswith(str(home))


def test_data_list_of_one_set_tells_its_terms(home: Path) -> None:
    said = gleak("data", "list", "linnaeus5").output
    entry = data.info("linnaeus5")
    assert entry.licence in said
    assert entry.page in said
    assert str(home) in said


def test_a_set_is_packed_verified_and_found_corrupt(home: Path, tmp_path: Path) -> None:
    for name in ("berry", "bird", "dog", "flower", "other"):
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (128, 128), (40 * k, 90, 200)).save(folder / f"{k}.jpg")
    result = gleak("data", "pack", "linnaeus5", "--from", tmp_path / "raw")
    assert result.exit_code == 0, result.output
    pack = home / "linnaeus5.npz"
    assert str(pack) in result.output
    result = gleak("data", "verify", "linnaeus5")
    assert result.exit_code == 0
    assert result.output.startswith("ok ")
    assert re.search(r"linnaeus5 .* packed\n", gleak("data", "list").output)
    pack.write_bytes(pack.read_bytes()[:-10])
    result = gleak("data", "verify")  # all that are here
    assert result.exit_code == 1
    assert re.search(r"(?m)^corrupt .*linnaeus5", result.output)
    assert re.search(r"(?m)^ok .*faces", result.output)


def test_fetch_passes_progress_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, where: Path | None, progress: Callable[[str, int, int], None]) -> Path:
        for done in (0, 50, 100):
            progress("archive.tar", done, 100)
        return home / f"{name}.npz"

    monkeypatch.setattr(data, "fetch", fetch)
    result = gleak("data", "fetch", "cifar10")
    assert result.exit_code == 0
    assert result.output.rstrip().endswith(str(home / "cifar10.npz"))


def test_data_refuses_in_sentences(home: Path) -> None:
    assert "did you mean 'mnist'?" in refused("data", "verify", "minst")
    assert "gleak data fetch mnist" in refused("data", "verify", "mnist")
    assert "needs no download" in refused("data", "fetch", "digits")
    assert "did you mean 'cifar10'?" in refused("data", "list", "cifar01")
    assert "image-net.org" in refused("data", "fetch", "imagenet")


# --- run, refresh, book ------------------------------------------------------------------------


class Recorder:
    """Stands in for `execute.run`, `execute.refresh` and `book.build`."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.asked: dict[str, Any] = {}

    def __call__(self, chapters: Sequence[str] = (), **options: Any) -> list[Outcome]:
        self.asked = {"chapters": list(chapters), **options}
        for outcome in self.outcomes:
            options["progress"](Event(outcome.chapter, "cell", done=1, total=2))
            options["progress"](Event(outcome.chapter, outcome.status, seconds=1.0))
        return self.outcomes


GOOD = Outcome("01_a", "executed", Path("/pages/01_a.key.ipynb"), 1.5)
BAD = Outcome("02_b", "failed", Path("/pages/02_b.key.ipynb"), 0.5, "02_b, code cell 3: oh no")


def test_run_hands_on_all_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(GOOD)
    monkeypatch.setattr(execute, "run", recorder)
    words = "run 1 02_b --profile quick --device cpu -j 3 -p seed=4 -p start=uniform --force"
    result = gleak(*words.split(), "--timeout", "9")
    assert result.exit_code == 0, result.output
    recorder.asked.pop("progress")
    assert recorder.asked == {
        "chapters": ["01", "02_b"],
        "profile": "quick",
        "device": "cpu",
        "jobs": 3,
        "params": {"seed": "4", "start": "uniform"},
        "force": True,
        "timeout": 9.0,
    }
    assert result.stdout == f"{GOOD.path}\n"
    assert result.stderr == "executed    01_a (1.0 s)\n"


def test_a_failed_chapter_is_named_and_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execute, "run", Recorder(GOOD, BAD))
    result = gleak("run")
    assert result.exit_code == 1
    assert result.stdout == f"{GOOD.path}\n"
    assert "gleak: 02_b, code cell 3: oh no" in result.stderr
    monkeypatch.setattr(execute, "refresh", Recorder(BAD))
    assert gleak("refresh").exit_code == 1


def test_list_and_why_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "run", None)
    listed = gleak("run", "--list")
    assert listed.exit_code == 0
    assert re.search(rf"(?m)^{FIRST}: ", listed.output)
    assert "    profile = 'smoke'\n" in listed.output
    number = FIRST.partition("_")[0]
    paths = (number, number.lstrip("0"), FIRST, ROOT / "chapters" / f"{FIRST}.ipynb")
    for word in paths:
        assert gleak("run", word, "--why").output.startswith(f"{FIRST}: ")


def test_run_refuses_before_a_kernel_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "_start", None)
    assert f"did you mean '{FIRST}'?" in refused("run", FIRST[:-2] + "xx")
    assert "unknown chapter '77'" in refused("run", "77")
    assert "did you mean 'smoke'?" in refused("run", "--profile", "smok")
    assert "did you mean 'seed'?" in refused("run", FIRST, "-p", "sed=3")
    assert "whole number" in refused("run", FIRST, "-p", "seed=three")
    assert "is not name=value" in refused("run", FIRST, "-p", "seed")
    assert "did you mean 'cuda'?" in refused("run", "--device", "cuba")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in refused("run", "--device", "cuda")


def test_book_prints_its_address_and_what_took_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def build(**options: Any) -> book.Book:
        asked.update(options)
        return book.Book(tmp_path / "index.html", True, (), {"execute": 3.21, "sphinx": 12.3})

    monkeypatch.setattr(book, "build", build)
    result = gleak("book", "--profile", "quick", "--jobs", "2", "--open")
    assert result.exit_code == 0
    assert result.stdout == f"{(tmp_path / 'index.html').as_uri()}\n"
    assert "execute 3.2 s, sphinx 12.3 s" in result.stderr
    assert (asked["profile"], asked["jobs"], asked["open"]) == ("quick", 2, True)


def test_a_book_that_cannot_be_built_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(**options: Any) -> None:
        raise book.BookError("the pages could not be built:\n  - a.md: WARNING")

    monkeypatch.setattr(book, "build", build)
    assert "a.md: WARNING" in refused("book")


# --- attack ------------------------------------------------------------------------------------

QUICK = ("--size", "8", "--steps", "800")


def test_a_picture_is_leaked(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "here"
    result = gleak("attack", picture, *QUICK, "--attack", "idlg", "--out", out)
    assert result.exit_code == 0, result.output
    assert "Threat model: FedSGD" in result.output
    assert "1 of 1 image leaked" in result.output
    assert "solved by iDLG: after 3 starts the gradients agree" in result.output
    assert sorted(p.name for p in out.iterdir()) == ["before-after.png", "filmstrip.png"]
    for path in out.iterdir():
        assert str(path) in result.stdout
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 10  # there is something to see


def test_an_exact_gradient_is_solved_at_once_and_without_a_film(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attacks.ATTACKS, "idlg", refuse)
    result = gleak("attack", picture, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "solved by analytic: the gradients agree" in result.output
    assert float(re.findall(r"PSNR ([\d.]+) dB", result.output)[0]) > 60
    assert "--attack idlg makes one" in result.output
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["before-after.png"]


def test_where_algebra_fails_idlg_goes_on(picture: Path, tmp_path: Path) -> None:
    """Its equations leave pixels free at that size; noise makes them contradict each other."""
    for words in (("--size", "48"), ("--size", "8", "--defence", "gaussian=0.01")):
        result = gleak("attack", picture, *words, "--steps", "2", "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert "idlg goes on" in result.output
        assert "\niDLG: 1 trial" in result.output
    assert "leave some of" in refused(
        "attack", picture, "--size", "48", "--attack", "analytic", "--out", tmp_path / "out"
    )


def test_every_attack_on_one_picture_is_offered(picture: Path, tmp_path: Path) -> None:
    assert set(ATTACKS) - {"auto"} == set(attacks.ATTACKS)
    for name in sorted(set(ATTACKS) - {"auto", "analytic"}):
        common = ("--size", "8", "--steps", "2", "--restarts", "2", "--out", tmp_path / name)
        result = gleak("attack", picture, "--attack", name, *common)
        assert result.exit_code == 0, result.output
        assert f"{attacks.RECIPES[name].title}: 1 trial of 1 image" in result.output
        assert "after 2 starts the loss is still" in result.output
        assert (tmp_path / name / "filmstrip.png").is_file()


def test_an_attack_keeps_its_recipe_unless_told_otherwise(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = attacks.cpl
    asked: list[dict[str, Any]] = []

    def short(seen: Any, **options: Any) -> Any:
        asked.append(options)
        return real(seen, **{**options, "steps": 1})

    monkeypatch.setitem(attacks.ATTACKS, "cpl", short)
    common = ("attack", picture, "--size", "8", "--attack", "cpl", "--out", tmp_path)
    assert gleak(*common).exit_code == 0
    assert not {"start", "steps", "stop"} & set(asked[0])
    assert (asked[0]["trials"], asked[0]["seed"]) == (3, 0)
    words = ("--start", "uniform", "--steps", "7", "--restarts", "5", "--seed", "4")
    assert gleak(*common, *words).exit_code == 0
    assert {k: asked[1][k] for k in ("start", "steps", "trials", "seed")} == {
        "start": "uniform",
        "steps": 7,
        "trials": 5,
        "seed": 4,
    }


def test_a_jpeg_and_a_defence(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.open(picture).convert("L").save("grey.jpg")
    defences = ("--defence", "clip=0.5", "--defence", "prune=0.9")
    words = (*defences, "--restarts", "2", "--attack", "dlg")
    result = gleak("attack", "grey.jpg", "--size", "8", "--steps", "3", *words)
    assert result.exit_code == 0, result.output
    assert re.search(r"defence +scaled down .* 0\.5 .*; then .*90 %", result.output)
    assert "not solved: after 2 starts" in result.output
    assert (tmp_path / "gleak-attack-grey" / "filmstrip.png").is_file()


def test_the_best_of_the_starts_counts(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = torch.tensor([5.0, 0.2, torch.inf, 0.3])
    real: Any = attacks.idlg

    def scripted(seen: Any, **options: Any) -> Any:
        found = real(seen, **{**options, "steps": 1})
        marked = torch.stack([found.images[0] * 0 + k / 4 for k in range(4)])
        return replace(found, images=marked, loss=losses, status=("failed",) * 4)

    monkeypatch.setitem(attacks.ATTACKS, "idlg", scripted)
    words = ("--size", "8", "--restarts", "4", "--attack", "idlg", "--out", tmp_path / "out")
    result = gleak("attack", picture, *words)
    assert "after 4 starts the loss is still 0.2" in result.output
    told = float(re.findall(r"MSE ([\d.e-]+),", result.output)[0])
    private = data.from_image(picture, 8, classes=10).images
    assert told == pytest.approx(float(((private - 0.25) ** 2).mean()), rel=0.05)


def test_ctrl_c_before_anything_is_found_writes_nothing(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "analytic", refuse)
    result = gleak("attack", picture, *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "interrupted; nothing was written" in result.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_the_best_picture_so_far(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = attacks.idlg

    def hurried(seen: Any, **options: Any) -> Any:
        def progress(done: int, total: int, loss: float) -> None:
            if done >= 300:
                raise KeyboardInterrupt

        return real(seen, **{**options, "progress": progress})

    monkeypatch.setitem(attacks.ATTACKS, "idlg", hurried)
    out = tmp_path / "out"
    common = ("--size", "8", "--steps", "100000", "--attack", "idlg", "--out", out)
    result = gleak("attack", picture, *common)
    assert result.exit_code == 130
    assert "1 interrupted" in result.output
    assert "interrupted: after 3 starts the loss is still" in result.output
    assert result.stderr == "interrupted; the best picture so far was written\n"
    assert sorted(p.name for p in out.iterdir()) == ["before-after.png", "filmstrip.png"]
    blank = ((data.from_image(picture, 8, classes=10).images - 0.5) ** 2).mean()
    # Three starts of a hundred steps are well on their way.
    assert float(re.findall(r"MSE ([\d.e-]+),", result.output)[0]) < float(blank) / 2


@pytest.mark.parametrize(
    ("wish", "count"),
    [("", 1), ("abc", 1), ("0", 1), ("-2", 1), ("2.5", 1), ("1", 1), (" 1 ,4", 1), ("0,1", 1)],
)
def test_a_strange_number_of_threads_is_no_crash(wish: str, count: int) -> None:
    assert threads(wish) == count


def test_the_first_number_of_threads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads(wish) for wish in ("4,2", "x, 3", "99999999999999999999")] == [4, 3, 8]


def test_attack_refuses_before_any_work(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "fedsgd", None)
    fake = tmp_path / "fake.png"
    fake.write_text("no picture")
    assert "no picture" in refused("attack", tmp_path / "none.png")
    assert "not a PNG or JPEG" in refused("attack", fake)
    assert "is a folder" in refused("attack", tmp_path)
    assert "did you mean 'idlg'?" in refused("attack", picture, "--attack", "idgl")
    assert "did you mean 'uniform'?" in refused("attack", picture, "--start", "unifrom")
    assert "did you mean 'prune'?" in refused("attack", picture, "--defence", "prunne=0.3")
    assert "share must lie between" in refused("attack", picture, "--defence", "prune=3")
    assert "cannot write into" in refused("attack", picture, "--out", fake)
    assert "cannot write into" in refused("attack", picture, "--out", fake / "below")
    assert "leave out --start" in refused("attack", picture, "--attack", "analytic", "--steps", "9")
    for option in (("--size", "7"), ("--steps", "0"), ("--restarts", "x")):
        assert gleak("attack", picture, *option).exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fake.png", "me.png"]


def test_a_read_only_folder_is_refused(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(dir: Path) -> None:  # the tests may run as root, whom no mode stops
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", read_only)
    said = refused("attack", picture, "--out", tmp_path / "locked")
    assert "cannot write into" in said
    assert "Permission denied" in said
    assert "--out" in said


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_can_be_asked_for(name: str) -> None:
    _, count = DEFENCES[name]
    spec = f"{name}={':'.join(['0.5'] * count)}" if count else name
    built = defend([spec])
    assert built is not None
    update = {"w": torch.linspace(-1, 1, 12).view(1, 12)}
    sent = built(update, torch.Generator().manual_seed(0))
    assert sent["w"].shape == (1, 12)
    assert not torch.equal(sent["w"], update["w"])
    for wrong in (f"{name}=x", f"{name}=1:2:3", name if count else f"{name}=1"):
        with pytest.raises(ValueError, match=re.escape(f"--defence {wrong!r} is not {name}")):
            defend([wrong])


def test_defences_are_chained_in_the_order_given() -> None:
    assert defend([]) is None
    built = defend(["half", "prune=0.2"])
    assert built is not None
    assert built.name.index("fp16") < built.name.index("prune")


# --- in a real process -------------------------------------------------------------------------


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([*GLEAK, "run", "--list"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert b"Traceback" not in ended.stderr


def test_a_sentence_goes_to_stderr_and_the_exit_code_says_so(tmp_path: Path) -> None:
    ended = subprocess.run([*GLEAK, "run", "nonsense"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("gleak: unknown chapter 'nonsense'")
    assert ended.stderr.count("\n") == 1


def test_an_interrupted_attack_ends_with_130_and_its_pictures(
    picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [*GLEAK, "attack", str(picture), "--attack", "idlg", "--start", "uniform"]
    words += ["--steps", "100000", "--defence", "gaussian=0.01", "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        for _ in range(10):  # the threat model and an empty line: the attack begins
            process.stdout.readline()
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(60) == 130
    # Had it not yet begun to search, there was nothing to write.
    assert said.strip() in (
        b"interrupted; the best picture so far was written",
        b"interrupted; nothing was written",
    )
    assert (out / "before-after.png").is_file() == (b"best picture" in said)


def test_progress_is_silent_where_nobody_watches(picture: Path, tmp_path: Path) -> None:
    result = gleak("attack", picture, *QUICK, "--out", tmp_path / "out")
    assert result.stderr == ""
    assert "\x1b" not in result.output
