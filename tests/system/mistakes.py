"""What users get wrong, and what each sentence must say: the nearest right thing, or what to do next.

A row is a command line and the words that its one sentence must hold. Names in braces are made by the fixture `world`
of test_cli.py: {run} a trained generator, {reader} a trained classifier, {own} the user's file, {tmp} an empty folder.
"""

from __future__ import annotations

from typing import NamedTuple


class Mistake(NamedTuple):
    typed: str
    says: tuple[str, ...]
    code: int = 2


MISTAKES = [
    # verbs
    Mistake("trian digits-classifier", ("'trian'", "'train'", "--help")),
    Mistake("smaple {run}", ("'sample'",)),
    Mistake("eval {run}", ("'evaluate'",)),
    Mistake("generate {run}", ("There is no verb 'generate'",)),
    Mistake("--verson", ("There is no verb",)),
    Mistake("runs lsit", ("'list'", "morphogen runs --help")),
    Mistake("runs verfy {run}", ("'verify'",)),
    Mistake("data shwo digits", ("'show'",)),
    # recipes
    Mistake("train", ("RECIPE is missing", "digits-classifier", "FILE.py:FUNCTION")),
    Mistake("train digits-clasifier", ("'digits-clasifier'", "'digits-classifier'")),
    Mistake("train Digits-Classifier2", ("'digits-classifier'",)),
    Mistake("train nothing-like-it-at-all-xyz", ("There is no recipe", "morphogen train --help")),
    Mistake("train digits-classifier extra", ("no place for 'extra'", "--help")),
    Mistake("train {tmp}/nope.py:cats", ("There is no file", "nope.py")),
    Mistake("train {tmp}/tinny.py:blurs", ("There is no file", "did you mean", "tiny.py")),
    Mistake("train {own}:blur", ("did you mean", "tiny.py:blurs")),
    Mistake("train {own}", ("Say which function", ":blurs", ":refuses")),
    Mistake("train {own}:_private", ("There is no recipe",)),
    Mistake("train {own}x:blurs", ("no Python file", "FILE.py:FUNCTION")),
    Mistake("train {own}:refuses", ("tiny.py, line", "ValueError: cats are not dogs", "--debug")),
    Mistake("train {own}:returns_nothing", ("returned a dict", "Experiment(model, data, trainer)")),
    Mistake("train {own}:needs", ("needs --width", "--help")),
    Mistake("train {own}:collides", ("argument 'seed'", "rename")),
    Mistake("train {tmp}/broken.py:cats", ("broken.py, line 3", "SyntaxError")),
    Mistake("train {tmp}/raises.py:cats", ("raises.py, line 2", "NameError", "--debug")),
    Mistake("train {tmp}/json.py:cats", ("name of another module", "rename")),
    Mistake("train {tmp}/my-cats.py:cats", ("cannot be a module's name", "my_recipe.py")),
    Mistake("train {tmp}:cats", ("no Python file",)),
    # flags and values
    Mistake("train digits-classifier --widht 3", ("'--widht'", "'--width'", "--help")),
    Mistake("train digits-classifier --stpes 3", ("There is no flag of digits-classifier '--stpes'",)),
    Mistake("train digits-classifier -width 3", ("'--width'",)),
    Mistake("train digits-classifier --epochs", ("--epochs needs a value", "whole number")),
    Mistake("train digits-classifier --epochs many", ("--epochs takes a whole number, not 'many'", "such as")),
    Mistake("train digits-classifier --epochs 1.5", ("--epochs takes a whole number, not '1.5'",)),
    Mistake("train digits-classifier --epochs 1 2", ("takes one value", "1 2")),
    Mistake("train digits-classifier --epochs 1 --epochs 2", ("--epochs is given twice",)),
    Mistake("train digits-classifier --lr fast", ("--lr takes a number, not 'fast'", "0.004")),
    Mistake("train digits-classifier --lr nan", ("--lr takes a number",)),
    Mistake("train digits-classifier --lr=", ("--lr takes a number",)),
    Mistake("train digits-classifier --seed x", ("--seed takes a whole number",)),
    Mistake("train digits-classifier --seed -1", ("--seed -1 is out of range", "0 to")),
    Mistake("train digits-classifier --seed 99999999999999999999", ("out of range",)),
    Mistake("train digits-classifier --sede 1", ("'--seed'",)),
    Mistake("train digits-classifier --check=maybe", ("--check is on or off", "--no-check")),
    Mistake("train {own}:blurs --kind fanci", ("'fanci'", "'fancy'")),
    Mistake("train {own}:blurs --widths 1 two", ("--widths takes whole numbers",)),
    Mistake("train {own}:blurs --widths", ("--widths needs a value",)),
    Mistake("train {own}:blurs --no-pictures yes", ("--no-pictures",)),
    Mistake("train {own}:blurs --no-steps", ("There is no flag",)),
    Mistake("train {own}:blurs --steps 0 --run {tmp}/r0", ("must each be at least 1",)),
    Mistake("train {own}:blurs --batch 0 --run {tmp}/r0", ("batch",)),
    Mistake("train digits-classifier --device gpu", ("'gpu'", "cpu")),
    Mistake("train digits-classifier --device cuda:77", ("cuda:77", "cpu")),
    Mistake("train digits-classifier --data-root {tmp}/none", ("--data-root", "is no folder")),
    Mistake("train mnist-classifier --data-root {tmp} --run {tmp}/r1", ("'mnist' was not found", "--data-root")),
    Mistake("train digits-classifier --with {tmp}/gone.py", ("There is no file", "gone.py")),
    # runs
    Mistake("train {own}:blurs --run {own}", ("is a file", "--run")),
    Mistake("train {own}:blurs --run {tmp}/full", ("is not empty and holds no run", "--run")),
    Mistake("train {own}:blurs --run {run} --lr 0.2", ("started as another experiment", "lr: 0.05 there, 0.2 here")),
    Mistake("train {own}:blurs --run {run} --seed 5", ("seed: 0 there, 5 here",)),
    Mistake("train digits-classifier --run {run}", ("another experiment", "--run")),
    Mistake("train --like {tmp}/none", ("There is no run 'none'",)),
    Mistake("train --like {run}", ("tiny.py:blurs", "RECIPE too")),
    Mistake("train digits-classifier --like {run}", ("made by 'tiny.py:blurs'", "--like")),
    Mistake("train {own}:blurs --run /dev/null/run", ("/dev/null",)),
    Mistake("sample", ("RUN is missing", "morphogen sample RUN")),
    Mistake("sample {tmp}/blurss-0", ("did you mean 'blurs-0'", "morphogen runs")),
    Mistake("sample {tmp}/none/deep", ("is no run folder", "morphogen train")),
    Mistake("sample {own}", ("'tiny.py'",)),
    Mistake("sample {tmp}/damaged", ("spec.json", "is damaged")),
    Mistake("sample {tmp}/future", ("format 99",)),
    Mistake("sample {tmp}/empty", ("no checkpoint yet", "continue its training")),
    Mistake("sample {tmp}/foreign", ("module 'elsewhere'", "--with elsewhere.py")),
    Mistake("sample {run}", ("module 'tiny'", "--with tiny.py")),
    Mistake("sample {run} --with {own} --n 0", ("--n 0", "1 or more")),
    Mistake("sample {run} --with {own} --n -3", ("--n -3",)),
    Mistake("sample {run} --with {own} --n lots", ("--n takes a whole number",)),
    Mistake("sample {run} --with {own} --label ten", ("There is no class 'ten'",)),
    Mistake("sample {run} --with {own} --label 10", ("no class 10", "0 to 9")),
    Mistake("sample {run} --with {own} --lable 3", ("'--label'",)),
    Mistake("sample {run} --with {own} --guidence 3", ("flag of Blurs '--guidence'", "'--guidance'")),
    Mistake("sample {run} --with {own} --guidance much", ("--guidance takes a number",)),
    Mistake("sample {run} --with {own} --kind hard", ("value of --kind 'hard'", "'sharp'")),
    Mistake("sample {run} --with {own} --checkpoint bset", ("'best'",)),
    Mistake("sample {run} --with {own} --checkpoint 7", ("Step 7", "there are 4, 8")),
    Mistake("sample {run} --with {own} --out {tmp}/a.bmpp", ("a.bmpp", ".png")),
    Mistake("sample {run} --with {own} --out {own}/a.png", ("tiny.py",)),
    Mistake("sample {run} --with {own} --columns 0", ("--columns 0",)),
    Mistake("sample {run} --with {own} --device tpu", ("'tpu'", "cpu")),
    Mistake("sample {reader}", ("Classifier cannot sample", "sample(")),
    Mistake("sample {reader} --guidance 2", ("flag of Classifier '--guidance'",)),
    # evaluation
    Mistake("evaluate {tmp}/nope", ("There is no run",)),
    Mistake("evaluate {run} --with {own} --n 1", ("--n 1 samples", "2 or more")),
    Mistake("evaluate {run} --with {own} --judge {tmp}/nope", ("There is no run",)),
    Mistake("evaluate {run} --with {own} --judge {run}", ("is a Blurs", "classifier's run")),
    Mistake("evaluate {run} --with {own} --gudance 1", ("'--guidance'",)),
    # data
    Mistake("data show", ("NAME is missing",)),
    Mistake("data show digist", ("'digits'", "morphogen data")),
    Mistake("data show digits --out {tmp}/sheet.pgn", ("sheet.pgn", ".png")),
    Mistake("data show digits --colums 3", ("'--columns'",)),
    Mistake("data show mnist --data-root {tmp}", ("'mnist' was not found", "--data-root")),
    Mistake("data list everything", ("no place for 'everything'",)),
    # runs
    Mistake("runs list {tmp}/nowhere", ("There is no folder",)),
    Mistake("runs show {tmp}/nope", ("There is no run",)),
    Mistake("runs report {tmp}/damaged", ("is damaged",)),
    Mistake("runs verify {run} --with {own} --steps 1", ("has no loss up to step 1", "--steps 2")),
    Mistake("runs verify {tmp}/empty", ("has no loss",)),
    Mistake("runs verify {run} --stesp 3", ("'--steps'",)),
]
