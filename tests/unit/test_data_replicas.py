"""Every published corpus from a web server to token ids, made up but in its published form."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import naive
import pytest
import replicas
import yaml
from bad_server import BadServer, Resource
from replicas import Replica

from workbench.cli import main
from workbench.data import registry
from workbench.data.corpus import Corpus
from workbench.data.published import Published

NAMES = ("enwik8", "text8", "wikitext-2", "wikitext-103", "ptb", "ptb-char", "lm1b")
PAIRS = [(name, rule) for name, rule in registry.symbols() if name != "lm1b"]
# imports once; for each line it starts a process, or says how one ended
PROGRAM = """
import json, os, sys
from pathlib import Path
from workbench.data import archives, download, published, raw, registry
from workbench.cli import main

answers, sys.stdout = sys.stdout, sys.stderr
registry.file = lambda: Path(sys.argv[1])
for line in sys.stdin:
    told, *words = json.loads(line)
    if told == "wait":
        answer = os.waitstatus_to_exitcode(os.waitpid(words[0], 0)[1])
    elif (answer := os.fork()) == 0:
        os.environ["WORKBENCH_DATA"] = told
        os._exit(main(words))
    answers.write(f"{answer}\\n")
    answers.flush()
"""


def inside(archive: Path) -> dict[str, int]:
    """Name and size of each member."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            return {i.filename: i.file_size for i in file.infolist()}
    with tarfile.open(archive) as file:
        return {i.name.removeprefix("./"): i.size for i in file}


def entry(name: str, replica: Replica, server: BadServer) -> dict[str, Any]:
    """The registry's entry of a corpus, for its replica on the server."""
    data = yaml.safe_load(registry.file().read_text("utf-8"))[name]
    names = {path.name for path in replica.files}
    (source,) = (s for s in data["sources"] if {f["name"] for f in s["files"]} == names)
    contents: dict[str, Any] = {}
    for file, path in zip(source["files"], replica.files, strict=True):
        for what in ("sha1", "sha256", "sha512", "md5", "about_bytes"):
            file.pop(what, None)
        file |= {"urls": [server.url(f"/{path.name}")], "said_by": "replica"}
        file |= {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
        sizes = inside(path) if file.get("members") else {}
        for member, out in file.get("members", {path.name: path.name}).items():
            pairs = zip(registry.names(member), registry.names(out), strict=True)
            for a, b in pairs:
                contents[b] = {"bytes": sizes.get(a, path.stat().st_size)}
    return {**data, "sources": [source], "contents": contents}


class World:
    """Replicas, the server that has them, and a registry that says so."""

    def __init__(self, folder: Path, stack: ExitStack, true_size: bool, names: tuple[str, ...]):
        self.server = stack.enter_context(BadServer({}))
        self.replicas = {n: replicas.build(n, folder / n, true_size) for n in names}
        facts = {n: entry(n, r, self.server) for n, r in self.replicas.items()}
        self.registry = folder / "registry.yaml"
        self.registry.write_text(yaml.safe_dump(facts), "utf-8")
        for replica in self.replicas.values():
            for path in replica.files:
                self.server.resources[f"/{path.name}"] = Resource(path.read_bytes())


class Processes:
    """Starts `workbench` in processes of its own, at the moment when it begins to work."""

    def __init__(self, facts: Path) -> None:
        command = [sys.executable, "-c", PROGRAM, str(facts)]
        pipe = subprocess.PIPE
        self.program = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def _ask(self, *line: object) -> int:
        assert self.program.stdin and self.program.stdout
        self.program.stdin.write(json.dumps(line) + "\n")
        self.program.stdin.flush()
        return int(self.program.stdout.readline())

    def start(self, root: Path, *words: str) -> int:
        """Its id."""
        return self._ask(str(root), *words)

    def ended(self, pid: int) -> int:
        """Its exit status, once it has ended."""
        return self._ask("wait", pid)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        with self.program:
            pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path_factory.mktemp("published"), stack, False, NAMES)


def use(world: World, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(root))
    monkeypatch.setattr(registry, "file", lambda: world.registry)
    registry.entries.cache_clear()


@pytest.fixture
def root(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    use(world, tmp_path, monkeypatch)
    yield tmp_path
    registry.entries.cache_clear()


def found(name: str, rule: str, folder: Path) -> tuple[list[str], dict[str, list[int]]]:
    """What plain Python makes of the unpacked files."""
    if name in ("enwik8", "text8"):
        data = (folder / name).read_bytes()
        if rule == "plain":
            return naive.numbered(rule, *naive.plain_raw(name, data))
        return naive.expected(rule, name, naive.prepared(name, data))
    texts = {s: (folder / form(folder).format(s)).read_bytes() for s in naive.SPLITS}
    return naive.expected(rule, name, texts)


def form(folder: Path) -> str:
    """What the files of a split are called."""
    forms = ("wiki.{}.tokens", "ptb.{}.txt", "ptb.char.{}.txt")
    return next(form for form in forms if (folder / form.format("train")).is_file())


def ids(corpus: Corpus) -> dict[str, list[int]]:
    return {split: tokens.tolist() for split, tokens in corpus.splits.items()}


@pytest.mark.parametrize("rule", ["plain", "transformer-xl"])
def test_sentences_are_those_of_plain_python(world: World, root: Path, rule: str) -> None:
    assert main(["data", "get", "lm1b", "--rule", rule]) == 0
    corpus = Published(name="lm1b", rule=rule).open()
    paths = [root / "lm1b" / name for name in registry.entry("lm1b").contents]
    train = sorted(path for path in paths if "training" in str(path))
    (held,) = (path for path in paths if "heldout" in str(path))
    if rule == "plain":
        counts = Counter(w for path in train for w in path.read_text("utf-8").split())
        words = [word for word, n in counts.most_common() if n >= 3]
        symbols = corpus.vocabulary.symbols()["sentences"]
        assert [word for word in symbols if word not in ("<S>", "<UNK>")] == words
        assert symbols[-1] == "<UNK>" and symbols.index("<S>") < 5
    else:
        lines = (root / "lm1b" / "1b_word_vocab.txt").read_text("utf-8").splitlines()
        symbols = [line.split()[0] for line in lines]
        assert corpus.vocabulary.symbols() == {"sentences": symbols}
        assert corpus.info["tokens"] == world.replicas["lm1b"].tokens
    about = corpus.info["sentences"]
    assert symbols[about["id"]] == about["symbol"] == "<S>"
    for split, shards in (("train", train), ("valid", [held]), ("test", [held])):
        assert len(shards) == (99 if split == "train" else 1)
        edges, ids = about["shards"][split], corpus.splits[split].tolist()
        for path, a, b in zip(shards, edges, edges[1:], strict=False):
            expected = naive.sentences(path.read_bytes(), symbols)
            joined = [token for sentence in expected for token in sentence[:-1]]
            assert ids[a : b + 1] == [*joined, about["id"]]


@pytest.mark.parametrize("name", NAMES)
def test_get_and_check(world: World, root: Path, name: str, capsys: Any) -> None:
    assert main(["data", "get", name, "--rule", "plain"]) == 0
    asked = len(world.server.requests)
    assert main(["data", "get", name, "--rule", "plain"]) == 0
    assert len(world.server.requests) == asked
    capsys.readouterr()
    # nobody has published a text of this size, and check says so; its files are as they should be
    assert main(["data", "check", name]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in told[-1:]] == ["BAD"] and "another text" in told[-1]
    assert all(line.startswith("ok ") for line in told[:-1]) and len(told) > 1


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_ids_are_those_of_plain_python(world: World, root: Path, name: str, rule: str) -> None:
    assert main(["data", "get", name, "--rule", rule]) == 0
    corpus = Published(name=name, rule=rule).open()
    symbols, expected = found(name, rule, root / name)
    assert corpus.vocabulary.symbols() == {"symbols": symbols}
    assert ids(corpus) == expected
    replica, newline = world.replicas[name], rule != "transformer-xl"
    counted = {s: len(tokens) for s, tokens in expected.items()}
    if registry.entry(name).level == "word" or name == "ptb-char" or rule == "plain":
        assert counted == replica.tokens and len(symbols) == replica.symbols
    elif name == "enwik8":
        assert len(symbols) == replica.symbols - (not newline)
    else:
        assert len(symbols) == replica.symbols + newline


def kill_again_and_again(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch, name: str, kills: int, seed: int
) -> Counter[str]:
    """Killed at random moments, then two at once: `get` ends where one that is left alone ends.

    Returns:
        how often what lay there after a kill.
    """
    rng = random.Random(seed)
    command = ("data", "get", name, "--rule", "plain")
    for served in world.server.resources.values():
        monkeypatch.setattr(served, "step", len(served.data) // 20)
        monkeypatch.setattr(served, "pause_s", 0.02)
    use(world, root / "alone", monkeypatch)
    begin = time.monotonic()
    assert main(command) == 0
    lasts = time.monotonic() - begin
    registry.entries.cache_clear()
    expected, met, number = tree(root / "alone"), Counter[str](), 0
    with Processes(world.registry) as processes:
        while True:
            # when it was too late for a kill, the next one hits a fresh start
            place = root / f"killed-{number}"
            last = met.total() == kills
            pids = [processes.start(place, *command) for _ in range(1 + last)]
            if not last:
                time.sleep(rng.uniform(0, lasts))
                os.kill(pids[0], signal.SIGKILL)
            statuses = [processes.ended(pid) for pid in pids]
            assert not last or statuses == [0, 0], met
            found = phase(place)
            if found == "done":
                assert tree(place) == expected, met
                number += 1
            if last:
                assert found == "done"
                return met
            met[found] += 1


def phase(place: Path) -> str:
    """How far `get` came."""
    names = [path.relative_to(place).as_posix() for path in place.rglob("*")]
    for what, sign in (
        ("done", r"prepared/published[^/]*/info.json"),
        ("preparing", r"prepared/.*\.(npy|ids|bin|json)"),
        ("unpacked", r".*\.(tokens|txt)"),
        ("unpacking", r".*\.(tokens|txt)\..*"),
        ("downloaded", r".*\.(zip|tgz)"),
        ("downloading", r".*\.part"),
    ):
        if any(re.fullmatch(sign, name) for name in names):
            return what
    return "nothing"


def tree(root: Path) -> dict[str, str]:
    """Every file with its sha256; the key of a prepared folder tells of places and times."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".lock" and path.name != "info.json":
            name = "/".join(
                part.rsplit("-", 1)[0] if i == 1 else part
                for i, part in enumerate(path.relative_to(root).parts)
            )
            found[name] = sha256(path.read_bytes()).hexdigest()
    return found


def test_get_goes_on_after_it_was_killed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = kill_again_and_again(world, tmp_path, monkeypatch, "wikitext-103", kills=1, seed=1)
    assert met.total() == 1


def by_lines(path: Path) -> tuple[int, set[str]]:
    """Tokens and symbols of a file of words, line by line."""
    n, symbols = 0, {"<eos>"}
    with path.open(encoding="utf-8") as file:
        for line in file:
            words = line.split()
            n += len(words) + 1
            symbols.update(words)
    return n, symbols


def by_position(name: str, rule: str, data: bytes) -> tuple[int, int]:
    """Tokens and symbols of a split of enwik8 or text8, as the rule's author counts them."""
    part = data.strip() if name == "text8" and rule != "plain" else data
    values, ends = set(part), part.count(b"\n")
    if rule == "plain":
        return len(part), len(values)
    if rule == "transformer-xl":
        return len(part) - ends, len(values - {10})
    return len(part) + (not part.endswith(b"\n")), len(values | {10})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "lm1b"])
def test_true_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure that was published of a corpus comes out of a text that has it."""
    with ExitStack() as stack:
        world = World(tmp_path / "served", stack, True, (name,))
        use(world, tmp_path / "data", monkeypatch)
        stack.callback(registry.entries.cache_clear)
        it, replica = registry.entry(name), world.replicas[name]
        assert main(["data", "get", name, *(f"--rule={rule}" for rule in [*it.rules][:1])]) == 0
        for rule, facts in it.rules.items():
            corpus = Published(name=name, rule=rule).open()
            tokens, n_symbols = counted(name, rule, it.place)
            assert (corpus.info["tokens"], corpus.vocabulary.size) == (tokens, n_symbols)
            assert n_symbols == facts.symbols
            assert corpus.comparable == facts.comparable
            if it.level == "word" or name == "ptb-char":
                assert tokens == replica.tokens
        assert main(["data", "check", name]) == 0


def counted(name: str, rule: str, folder: Path) -> tuple[dict[str, int], int]:
    """Tokens of each split and symbols, as plain Python counts them in the unpacked files."""
    if name in ("enwik8", "text8"):
        data = (folder / name).read_bytes()
        cuts = (0, 90_000_000, 95_000_000, 100_000_000)
        parts = zip(naive.SPLITS, cuts, cuts[1:], strict=False)
        found = {split: by_position(name, rule, data[a:b]) for split, a, b in parts}
        return {split: n for split, (n, _) in found.items()}, found["train"][1]
    texts = {split: by_lines(folder / form(folder).format(split)) for split in naive.SPLITS}
    return {split: n for split, (n, _) in texts.items()}, len(texts["train"][1])


@pytest.mark.slow
def test_get_goes_on_after_it_was_killed_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        world = World(tmp_path / "served", stack, True, ("ptb",))
        met = kill_again_and_again(world, tmp_path, monkeypatch, "ptb", kills=30, seed=2)
    assert len(met) > 3, met
