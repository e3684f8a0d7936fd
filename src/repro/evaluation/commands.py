"""`repro evaluate ...`: closed-loop success of a checkpoint, its health, or its answer to two pictures.

    repro evaluate --model RUN --store STORE --suite grocery
    repro evaluate --model RUN --store STORE --check --out check.txt
    repro evaluate chains --model RUN --store STORE
    repro evaluate change-agent --run RUN --before a.png --after b.png
"""

import sys
import time
from pathlib import Path

import click

from repro.machine import UserError

SUITES = ("grocery", "libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")  # names only: nothing heavy is imported
PROTOCOLS = ("openvla", "openvla-oft", "openpi", "lerobot")
WIDE = ("grocery", "libero_object")  # suites that have that layout
PARTS = ("language", "vision", "vggt")
CHECK, BOTH = ("simulator", "no_overfit", "minutes"), ("out", *PARTS)  # options of --check, and of both; all others are of a score

@click.group(invoke_without_command=True)
@click.option("--model", type=click.Path(path_type=Path), help="A run's folder or one checkpoint.")
@click.option("--store", type=click.Path(path_type=Path), help="Its training data; with --check any data of the same kind.")
@click.option("--check", is_flag=True, help="Examine it: [OK] or [FAIL] lines with the next step each. Exit code 1 on a FAIL.")
@click.option("--simulator", type=click.Choice(["tabletop", "grocery", "calvin", "libero", "none"]),
              help="With --check (default: the data's own).")
@click.option("--no-overfit", is_flag=True, help="With --check: do not train on one demonstration.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True,
              help="With --check: of that training, which is done twice.")
@click.option("--language", metavar="FOLDER", help="Another place of a VGGT-VLA's frozen language model, for sentences new to it.")
@click.option("--vision", metavar="FOLDER", help="Another place of its frozen vision tower.")
@click.option("--vggt", metavar="FILE", help="Another place of its frozen VGGT weights.")
@click.option("--suite", type=click.Choice(SUITES), default="grocery", show_default=True)
@click.option("--layout", type=click.Choice(["official", "wide"]), default="official", show_default=True,
              help="wide: grocery, libero_object.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="openvla-oft", show_default=True)
@click.option("--episodes", type=click.IntRange(min=1), help="Of each task (default: the convention's).")
@click.option("--tasks", help="Names, comma-separated (default: all).")
@click.option("--execute", type=click.IntRange(min=0), help="Actions of each chunk (default: the convention's; 0: all).")
@click.option("--videos", type=click.IntRange(min=0), default=0, show_default=True, help="Films of so many successes and as many failures.")
@click.option("--floors/--no-floors", default=True, show_default=True, help="Blanked, shuffled, replay, random, constant, and the expert.")
@click.option("--blind", type=click.Path(path_type=Path), metavar="RUN", help="One trained without pictures, in the place of blanked ones.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of outcomes, films, records (default: work/evaluation); with --check "
              "a file for the lines, their record beside it as .json.")
@click.option("--fresh", is_flag=True, help="Throw away outcomes of another policy under the same name.")
@click.pass_context
def evaluate(context, model: Path | None, store: Path | None, check: bool, **options) -> None:
    """Closed-loop success of a checkpoint on LIBERO's suites or the grocery table, its floors beside it; or, with --check, its health.

    `repro evaluate chains` scores it on chains of five, `repro evaluate change-agent` answers for two pictures of one place."""
    if context.invoked_subcommand:
        return
    if model is None or store is None:
        raise UserError("which checkpoint, and which data?", "--model FOLDER --store STORE", f"--model {model} --store {store}")
    given = [name for name in options if context.get_parameter_source(name).name == "COMMANDLINE"]
    if unread := [f"--{name.replace('_', '-')}" for name in given if name not in BOTH and (name in CHECK) != check]:
        raise UserError(f"{', '.join(unread)} {'does' if len(unread) == 1 else 'do'} nothing {'with' if check else 'without'} --check",
                        "--check examines a checkpoint, a suite scores it: one of them at a time",
                        next_step="leave it out, or run two commands")
    if options["blind"] and not options["floors"]:
        raise UserError("--blind does nothing with --no-floors", "a floor beside the score, or none", next_step="leave one of them out")
    if options["layout"] == "wide" and options["suite"] not in WIDE:
        raise UserError(f"{options['suite']} has no wide layout", f"--suite {' | '.join(WIDE)}", options["suite"], "--layout official")
    if check:
        _check(model, store, options)
    else:
        _suite(model, store, options)


def _elsewhere(options: dict) -> dict[str, str]:
    """Where else the frozen parts of a checkpoint lie, but for its language model."""
    return {name: options[name] for name in PARTS[1:] if options[name]}


def _check(model: Path, store: Path, options: dict) -> None:
    from repro import doctor
    from repro.evaluation import check, check_record

    found, begun = [], time.monotonic()
    if options["out"]:
        check_record.place(options["out"])
    for line in check.checks(model, store, options["simulator"], not options["no_overfit"], options["minutes"], options["language"],
                             elsewhere=_elsewhere(options)):
        doctor.show([line], click.echo)
        found.append(line)
    if options["out"]:
        asked = {name: options[name] for name in ("simulator", "no_overfit", "minutes", *PARTS)}
        check_record.save(options["out"], found, model, store, asked, (time.monotonic() - begun) / 60)
    sys.exit(any(line.status == doctor.FAIL for line in found))


def _suite(model: Path, store: Path, options: dict) -> None:
    from repro import machine, results
    from repro.data.episodes import Store
    from repro.evaluation import suites
    from repro.evaluation.policies import load_policy

    data, seed = Store(store), options["seed"]
    policy = load_policy(model, data, language=options["language"], elsewhere=_elsewhere(options))
    out = options["out"] or machine.work("evaluation")
    _say_other_data(policy, model, store, data)
    tasks = options["tasks"].split(",") if options["tasks"] else None
    plan = suites.plan_of(options["suite"], options["layout"], options["episodes"], tasks, options["protocol"], seed, options["execute"],
                          orientation=getattr(policy.config, "orientation", "upright"), **suites.sizes_of(data))
    floors = _floors(policy, data, plan, options) if options["floors"] else {}
    records = suites.score({type(policy).__name__: policy, **floors}, plan, out, data, seed=seed, videos=options["videos"],
                           fresh=options["fresh"], log=click.echo)
    click.echo(results.markdown(*suites.table(records)))
    if options["floors"] and not options["blind"]:
        click.echo('images blanked: grey pictures are out of distribution for it, so that says little; train a blind one ("blind": true in '
                   "the job's model) and give it by --blind")
    click.echo(f"records: {out / 'runs'}")


def _floors(policy, data, plan, options: dict) -> dict[str, object]:
    from repro.evaluation import suites
    from repro.evaluation.policies import load_policy

    load = lambda: load_policy(options["blind"], data, language=options["language"], elsewhere=_elsewhere(options))
    blind = _trained_blind(load, options["blind"])
    replayed, began = suites.demonstrations(data, plan)
    return suites.beside(policy, replayed, plan, options["seed"], blind, began)


@evaluate.command("chains")
@click.option("--model", type=click.Path(path_type=Path), required=True,
              help="A run's folder, one checkpoint, or a folder of the official ReconVLA code (config.json, *.safetensors).")
@click.option("--store", type=click.Path(path_type=Path), required=True, help="Its training data; of an official one any of CALVIN's.")
@click.option("--simulator", type=click.Choice(["tabletop", "calvin"]), default="tabletop", show_default=True,
              help="The embedded play table, or CALVIN's own (CALVIN_ROOT).")
@click.option("--scene", default="D", show_default=True, help="Of the play table.")
@click.option("--renderer", type=click.Choice(["tiny", "egl"]), default="tiny", show_default=True,
              help="Of CALVIN: egl (a GPU) as published, tiny on a CPU.")
@click.option("--chains", "count", type=click.IntRange(min=1), help="Default: 100 on the play table, in CALVIN the protocol's.")
@click.option("--tasks", help="Of the play table, comma-separated (default: those of the store).")
@click.option("--protocol", type=click.Choice(["calvin", "reconvla"]), default="calvin", show_default=True,
              help="1000 chains of 360 steps a task, or ReconVLA's script: 500 of 500.")
@click.option("--server-seam", is_flag=True, help="Acting canvas with the seam of ReconVLA's server, 6 pixels off its training's.")
@click.option("--nf4", is_flag=True, help="An official checkpoint's language model in 4 bits, for a GPU of 16 GB.")
@click.option("--vision", metavar="FOLDER", help="SigLIP's config.json, for an official checkpoint without a network.")
@click.option("--floors/--no-floors", default=True, show_default=True,
              help="Blanked, shuffled, replay, random, constant, and the expert; the first two take as long as the model.")
@click.option("--blind", type=click.Path(path_type=Path), metavar="RUN", help="One trained without pictures, in the place of blanked ones.")
@click.option("--simulators", type=click.IntRange(min=1), default=32, show_default=True, help="Stepped together; CALVIN: one a worker.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that share them (default: CALVIN one a core, the play table 0).")
@click.option("--seed", default=0, show_default=True, help="Of the play table's start states.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of outcomes and records (default: work/evaluation).")
@click.option("--fresh", is_flag=True, help="Throw away outcomes of the same policy that another version of the library left.")
def evaluate_chains(model: Path, store: Path, out: Path | None, **options) -> None:
    """Average length of chains of five and success at each place of the chain, floors beside it; the same command goes on after a stop."""
    from dataclasses import replace

    from repro import machine, results
    from repro.data.episodes import Store
    from repro.evaluation import chain_scores, floors
    from repro.evaluation.policies import load_policy

    if options["blind"] and not options["floors"]:
        raise UserError("--blind does nothing with --no-floors", "a floor beside the score, or none", next_step="leave one of them out")
    data, out, protocol = Store(store), out or machine.work("evaluation"), {"calvin": "CALVIN", "reconvla": "ReconVLA"}
    policy = load_policy(model, data, elsewhere={"vision": options["vision"]}, quantise="nf4" if options["nf4"] else None)
    if options["server_seam"]:
        if getattr(policy.config, "height", None) != chain_scores.CANVAS:
            raise UserError("the seam of ReconVLA's server belongs to its own canvas", f"height {chain_scores.CANVAS}",
                            getattr(policy.config, "height", type(policy).__name__), "leave --server-seam out")
        policy.config = replace(policy.config, acting_static_rows=chain_scores.SERVER_ROWS)
    blind = _trained_blind(lambda: load_policy(options["blind"], data), options["blind"])
    chosen = options["tasks"].split(",") if options["tasks"] else None
    plan = chain_scores.plan_of(data, options["simulator"], options["scene"], options["count"], chosen, protocol[options["protocol"]],
                                options["seed"], options["renderer"])
    _say_other_data(policy, model, store, data)
    replayed = lambda: floors.replay(chain_scores.demonstrations(data), plan.sentences)
    others = floors.beside(policy, plan.sentences, replayed(), options["seed"], blind) if options["floors"] else {}
    name = f"{'official checkpoint' if getattr(policy, 'official', False) else type(policy).__name__} {model.resolve().name}"
    records = chain_scores.score({name: policy, **others}, plan, out, data, options["seed"], options["simulators"], options["workers"],
                                 options["fresh"], click.echo)
    departs = records[0]["config"]["departs"]
    click.echo(f"{plan.benchmark}, at most {plan.rules.max_steps} steps a task; {plan.rules.name}'s protocol"
               + (f" but for: {', '.join(departs)}" if departs else ""))
    click.echo(results.markdown(*results.chain_table(records)))
    if options["simulator"] == "calvin":
        claims = results.claims(machine.root() / "papers" / "reconvla" / "claims.toml")
        click.echo("the paper's own rows; which of them a checkpoint belongs to, its folder does not say:")
        click.echo(results.markdown(*results.paper_table(claims, [], table=1)))
    if options["floors"] and not options["blind"]:
        click.echo("images blanked: grey pictures are out of distribution for it, which says little; one trained blind says more (--blind)")
    click.echo(f"records: {out / 'runs'}")


def _trained_blind(load, run: Path | None):
    """The policy of --blind, or None where none was given."""
    policy = load() if run else None
    if policy is not None and not getattr(policy.config, "blind", False):
        raise UserError(f"{run} was not trained blind", '"blind": true in its model', "false", "another run, or no --blind")
    return policy


def _say_other_data(policy, model: Path, store: Path, data) -> None:
    trained_on = getattr(policy, "trained", {}).get("data", {}).get("hash")
    if trained_on and trained_on != data.hash:
        click.echo(f"{store} is not the data that {model} was trained on: what is replayed and pictures' sizes are this store's")


@evaluate.command("change-agent")
@click.option("--run", type=click.Path(path_type=Path), required=True, help="A training run's folder, or one checkpoint.")
@click.option("--before", type=click.Path(path_type=Path), required=True, help="Picture of the earlier date.")
@click.option("--after", type=click.Path(path_type=Path), required=True, help="Picture of the later date, of the same place and size.")
@click.option("--caption", help="What is said to have changed (default: nothing is told).")
@click.option("--write", is_flag=True, help="The model writes the caption that it is then told.")
@click.option("--out", type=click.Path(path_type=Path), default="change.png", show_default=True, help="The later picture with the box.")
def evaluate_change_agent(run: Path, before: Path, after: Path, caption: str | None, write: bool, out: Path) -> None:
    """Where something changed between two pictures of one place: [cx, cy, scale] and a box, or "no change" where the gate says so."""
    from repro.evaluation.change_answer import answer

    for line in answer(run, before, after, caption, write, out):
        click.echo(line)
