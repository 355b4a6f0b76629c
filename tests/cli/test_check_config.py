"""The kinds of options, checked against what takes them."""

import inspect
import re
from itertools import zip_longest
from pkgutil import resolve_name

import pytest
from omegaconf import OmegaConf
from pytorch_lightning import Trainer

from genstab.cli import signatures
from genstab.cli.check_config import REFUSED, check_arguments, check_options, check_seed, check_training
from genstab.cli.main import COMMANDS
from genstab.errors import InputError
from tests.cli.test_config import GROUPS, composed

# Has an argument of every kind; nobody imports it.
SOURCE = """
import nowhere
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

Size = int | Iterable[int]

def takes(
    count: int = 1,
    rate: float = 1.0,
    on: bool = False,
    name: str | None = None,
    size: Size = 1,
    mode: Literal["a", "b"] | bool = "a",
    path: str | Path = "",
    table: Mapping[str, int] | None = None,
    some: Sequence[int] = (),
    pair: "tuple[float, float]" = (0, 1),
    net: nowhere.Net = nowhere.Net(),
    perhaps: Optional[nowhere.Net] = None,
    anything: Any = None,
    unknown=None,
): ...

class Parent:
    def __init__(self, root: str, flip: bool = True): ...

class Child(Parent):
    def __init__(self, url: str, **kwargs):
        super().__init__(**kwargs)

class Heir(Child): ...

class Open(Parent):
    def __init__(self, url: str, **options):
        super().__init__(url)
        self.options = options
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    signatures.signature_of.cache_clear()
    signatures._module.cache_clear()


NAMES = re.findall(r"^    (\w+)(?::.*| = |=)", SOURCE.partition("class Parent")[0], re.MULTILINE)
FITS = [
    {"count": 3}, {"rate": 3}, {"rate": 1e-4}, {"on": True}, {"name": None}, {"name": "x"}, {"size": [1, 2]},
    {"size": (1, 2)}, {"size": 5}, {"mode": "b"}, {"mode": False}, {"path": "x"}, {"table": {"a": 1}},
    {"table": None}, {"some": [1]}, {"net": {"_target_": "x"}}, {"perhaps": None}, {"pair": [1, 0.5]},
    {"anything": None}, {"anything": 3}, {"unknown": None},
]  # fmt: skip


@pytest.mark.parametrize("arguments", FITS, ids=str)
def test_what_fits_passes(arguments):
    check_arguments("mine.takes", arguments, "group")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": "3"}, "group.count='3' is not an integer"),
        ({"count": 1.0}, "group.count=1.0 is not an integer"),
        ({"count": True}, "group.count=true is not an integer"),
        ({"count": None}, "group.count=null is not an integer"),
        ({"rate": "1e-4"}, "group.rate='1e-4' is not a number"),
        ({"rate": False}, "group.rate=false is not a number"),
        ({"on": 1}, "group.on=1 is not true or false"),
        ({"on": "yes"}, "group.on='yes' is not true or false"),
        ({"name": 5}, "group.name=5 is not text or null"),
        ({"size": 1.5}, "group.size=1.5 is not an integer or a list"),
        ({"size": None}, "group.size=null is not an integer or a list"),
        ({"mode": "c"}, "group.mode='c' is not 'a', 'b', true or false"),
        ({"path": None}, "group.path=null is not text"),
        ({"table": 5}, "group.table=5 is not a group of keys or null"),
        ({"some": 5}, "group.some=5 is not a list"),
        ({"some": [1, "a"]}, "group.some.1='a' is not an integer"),
        ({"pair": 5}, "group.pair=5 is not a list"),
        ({"pair": [1]}, "group.pair=[1] is not of the right length"),
        ({"pair": [1, 2, 3]}, "group.pair=[1, 2, 3] is not of the right length"),
        ({"net": None}, "group.net=null is not a group of keys"),
        ({"nett": {}}, "group.nett is not known: did you mean group.net?"),
        ({"zzz": 1}, f"group.zzz is not known; mine.takes takes {', '.join(NAMES)}"),
    ],
)
def test_what_does_not_is_named_with_what_would(arguments, message):
    with pytest.raises(InputError) as error:
        check_arguments("mine.takes", arguments, "group")
    assert str(error.value) == message


def test_a_class_that_hands_on_its_keywords_is_checked_for_its_parents():
    for child in ("mine.Child", "mine.Heir"):
        with pytest.raises(InputError, match=r"data\.flip='perhaps' is not true or false"):
            check_arguments(child, {"flip": "perhaps"}, "data")
        with pytest.raises(InputError, match=r"data\.flipp is not known: did you mean data\.flip\?"):
            check_arguments(child, {"flipp": True}, "data")
        check_arguments(child, {"root": "x", "url": "x", "flip": False}, "data")
    check_arguments("mine.Open", {"flipp": True}, "data")  # whoever gets `options` may know it
    check_arguments("genstab.data.FacadesData", {"root": None, "url": "x", "batch_size": 3}, "data")


def test_what_nothing_is_known_of_passes():
    check_arguments("math.sin", {"x": "text"}, "builtin")
    check_arguments("nowhere.Class", {"x": "text"}, "absent")
    check_arguments("mine.Absent", {"x": "text"}, "absent")


@pytest.mark.parametrize("name", ["genstab.Pix2Pix", "genstab.ShiftStability", "genstab.data.SyntheticData"])
def test_what_is_read_is_what_python_sees(name):
    """Every parameter of ours, and those types that are plain."""
    real = inspect.signature(resolve_name(name)).parameters
    read = signatures.signature_of(name)
    assert {*real} - {"kwargs"} <= {*read.types}
    for key, parameter in real.items():
        if parameter.annotation in (int, float, str, bool):
            assert read.types[key] is parameter.annotation


def test_lightnings_trainer_is_read_whole():
    read = signatures.signature_of("pytorch_lightning.Trainer")
    assert list(read.types) == list(inspect.signature(Trainer).parameters)
    assert not read.is_open
    config = {"max_epochs": 3, "devices": "auto", "precision": "32-true", "logger": False, "max_time": "00:00:01:00"}
    check_arguments("pytorch_lightning.Trainer", config, "trainer")
    with pytest.raises(InputError, match=r"trainer\.precision='foo' is not 64, 32, 16, 'transformer-engine'"):
        check_arguments("pytorch_lightning.Trainer", {"precision": "foo"}, "trainer")
    assert {*REFUSED} <= {*read.types}


def test_commands_check_keys_that_their_jobs_take():
    for command in COMMANDS.values():
        assert all(signatures.signature_of(each).types for each in command.used_by)


@pytest.mark.parametrize("name", [5, None])
def test_a_target_that_is_not_text(name):
    with pytest.raises(InputError, match=r"a\.b\._target_=.* is not text"):
        check_options({"a": {"b": {"_target_": name}}})


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_seeds(seed):
    check_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
def test_what_is_no_seed(seed):
    with pytest.raises(InputError, match=r"^seed=\S+ is not an integer from 0 to 4294967295$"):
        check_seed(seed)


# One option of each group beside each other; an experiment chooses those of the others itself.
OPTIONS = zip_longest(
    *([f"{group}={name}" for name in names] for group, names in GROUPS.items() if group != "experiment")
)


@pytest.mark.parametrize("options", [*OPTIONS, *([f"experiment={name}"] for name in GROUPS["experiment"])])
def test_every_option_of_ours_passes(tmp_path, options):
    missing = ["data.root=x"] * bool({"data=paired", "data=folder", "data=classes"} & set(options))
    config = composed(tmp_path, *filter(None, options), *missing)
    config.run_name = "x"
    plain = OmegaConf.to_container(config, resolve=True)
    check_options(plain)
    check_training(plain)


def test_overlapping_crops_and_their_loss_go_together_and_need_room():
    def training(**changes):
        options = {"crop_size": 25, "overlap_offset": 8, "equivariance_weight": 60.0, **changes}
        data = {key: options[key] for key in options if key != "equivariance_weight"}
        check_training({"seed": 1, "data": data, "model": {"equivariance_weight": options["equivariance_weight"]}})

    training()  # 25 pixels, less 8 of the shift and 8 of the margin on each side: one is left
    training(overlap_offset=0, equivariance_weight=0.0, crop_size=4)
    with pytest.raises(InputError, match=r"data\.overlap_offset=8 without a model\.equivariance_weight"):
        training(equivariance_weight=0.0)
    with pytest.raises(InputError, match=r"equivariance_weight needs overlapping crops: set data\.overlap_offset"):
        training(overlap_offset=0)
    with pytest.raises(InputError, match=r"crop_size=24 is too small for data\.overlap_offset=8: set at least 25"):
        training(crop_size=24)
    with pytest.raises(InputError, match=r"crop_size=\[64, 20\] is too small"):
        training(crop_size=[64, 20])
    training(overlap_offset=8, twin_reach=0, equivariance_weight=0.0)  # the old name, where it is given, wins
    with pytest.raises(InputError, match=r"data\.twin_reach=8 without a model\.equivariance_weight"):
        training(overlap_offset=0, twin_reach=8, equivariance_weight=0.0)
