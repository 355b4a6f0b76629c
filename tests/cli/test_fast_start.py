"""Help, versions and refusals of misspelt options come without torch and Lightning."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
HEAVY = ("torch", "pytorch_lightning", "torchmetrics", "kornia", "matplotlib", "plotly", "scipy", "wandb")
COMMANDS = ("train", "measure", "predict", "report", "shard", "workspace")
# What is asked, and what must be in the answer.
ASKED = [
    (["--help"], "usage: genstab COMMAND"),
    (["--version"], "pytorch-lightning "),
    *(([command, "--help"], f"usage: genstab {command}") for command in COMMANDS),
    (["trian"], "'trian' is not one of train"),
    (["measure", "model.pt"], "'model.pt' is not key=value"),
    (["train", "model.l1_weigth=5"], "model.l1_weigth is not known: did you mean model.l1_weight?"),
    (
        ["train", "data.batchsize=4"],
        "data.batchsize is not known: did you mean data.batch_size or data.val_batch_size?",
    ),
    (["train", "trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
    (
        ["train", "trainer.limit_train_batch=3"],
        "did you mean trainer.limit_train_batches or trainer.limit_val_batches?",
    ),
    (["train", "callbacks.stability.margn=2"], "did you mean callbacks.stability.margin?"),
    (["train", "callbacks.stabilty.margin=2"], "did you mean callbacks.stability.margin?"),
    (["train", "callbacks.lst=null"], "did you mean callbacks.last?"),
    (["train", "modle.l1_weight=5"], "did you mean model.l1_weight?"),
    (["train", "model.generatr.channels=8"], "model.generatr is not known: did you mean model.generator?"),
    (["train", "logger.prject=a"], "did you mean logger.project?"),
    (["train", "batch_size=4"], "did you mean data.batch_size?"),
    (["train", "limit_train_batches=4"], "did you mean trainer.limit_train_batches?"),
    (["train", "+trainer.max_epoch=3"], "trainer.max_epoch is not known: did you mean trainer.max_epochs"),
    (["train", "antialias=tri9"], "Available options in 'antialias': bin4 bin5"),
    (["train", "data=paired"], "data.root is missing: add data.root=DIR"),
    (["train", "+antilias=tri3"], "antilias is not known: did you mean antialias?"),
    (["train", "~data"], "~data leaves out what this command needs: data=NAME chooses another one"),
    (["measure", "~data", "model.checkpoint=a"], "~data leaves out what this command needs"),
    (["train", "data.batch_size=abc"], "data.batch_size='abc' is not an integer"),
    (["train", "trainer.limit_val_batches=abc"], "trainer.limit_val_batches='abc' is not an integer, a number or null"),
    (["train", "trainer.limit_test_batches=1"], "trainer.limit_test_batches=1 does not work"),
    (["train", "seed=-1"], "seed=-1 is not an integer from 0"),
    (["measure", "imags=3"], "did you mean images?"),
    (["measure", "batch_size=abc"], "batch_size='abc' is not an integer"),
    (["measure", "model._target_=genstab.UNet", "model.chanels=3"], "model.chanels is not known"),
    (["predict", "input=a", "output=b", "recursive=maybe"], "recursive='maybe' is not true or false"),
    (["predict", "input=a", "output="], "output= is empty: name a file or a folder"),
    (["measure", "model.checkpoint=''"], "model.checkpoint= is empty"),
    (["shard", "input=a"], "output is missing: add output=DIR"),
]
PROGRAM = """
import contextlib, io, json, sys
import genstab
answers = []
imported = lambda: [name for name in {heavy} if name in sys.modules]
seen = [imported()]
from genstab.cli.main import main
for arguments in {asked}:
    said = io.StringIO()
    sys.argv = ["genstab", *arguments]
    with contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as end:
            said.write(str(end.code))
    answers.append(said.getvalue())
    seen.append(imported())
genstab.BlurPool2d
seen.append(imported())
print(json.dumps([answers, seen]))
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    program = PROGRAM.format(heavy=HEAVY, asked=[arguments for arguments, _ in ASKED])
    folder = tmp_path_factory.mktemp("start")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    answers, (package, *asked, layer) = json.loads(done.stdout.splitlines()[-1])
    return answers, package, asked, layer


@pytest.mark.parametrize("i", range(len(ASKED)), ids=[" ".join(arguments) for arguments, _ in ASKED])
def test_the_answer_comes_without_heavy_imports(answered, i):
    answers, _, asked, _ = answered
    assert ASKED[i][1] in answers[i]
    assert asked[i] == []


def test_the_package_imports_nothing_and_a_layer_torch_alone(answered):
    _, package, _, layer = answered
    assert package == []
    assert layer == ["torch"]


def test_hydras_advice_is_whole(answered):
    (answer,) = (answer for answer in answered[0] if "callbacks.lst" in answer)
    assert answer == (
        "genstab: Could not override 'callbacks.lst': did you mean callbacks.last? "
        "(To append to your config use +callbacks.lst=null; --help lists all keys)"
    )


def test_versions_are_what_a_bug_report_needs(answered):
    lines = answered[0][1].splitlines()
    packages = ("python", "genstab", "torch", "pytorch-lightning", "torchmetrics", "kornia", "hydra-core", "wandb")
    assert [line.split()[0] for line in lines[:9]] == [*packages, "numpy"]
    assert "processors" in lines[9]
    assert len(lines) == 10 or lines[10].startswith("commit ")
