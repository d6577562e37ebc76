"""`gangway cluster …`: parses, calls, prints. The `gangway` command loads this by its entry point, and is the one place
where errors become exit codes: 0 done, 1 failed with the sentence to read, 2 wrong usage or configuration.

With `--json` standard output is one JSON value and nothing else; steps go to standard error.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.config.loader import load_spec
from cluster.config.spec import ClusterSpec
from cluster.errors import SpecError
from serving.config import load_config

app = typer.Typer(
    name="cluster",
    no_args_is_help=True,
    help="From a model to a running gang on Kubernetes: plan, doctor, role, render, up, status, logs, submit, down.",
)

File = Annotated[Path, typer.Argument(help="Cluster configuration, such as configs/cluster/NAME.yaml.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in a.b=c.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Kubeconfig = Annotated[str | None, typer.Option(help="Kubeconfig; else KUBECONFIG, ~/.kube/config, or the pod's own.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig; else its current one.")]
SingleNode = Annotated[bool, typer.Option("--allow-single-node", help="Render a gang of one node after all.")]

EXAMPLE = "configs/cluster/llama-3.1-405b-tp16-2x8-h100.yaml"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _say(as_json: bool) -> Callable[[str], None]:
    return lambda line: typer.echo(line, err=as_json)


@app.command(epilog="Example: gangway cluster plan models/llama --gpu h100")
def plan(
    model: Annotated[Path, typer.Argument(help="Folder of the model, or its config.json.")],
    gpu: Annotated[str | None, typer.Option(help="GPU by name, such as h100.")] = None,
    node: Annotated[str | None, typer.Option(help="A node as GPUs x GiB, such as 8x80.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Requests at a time.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of each, prompt and answer.")] = None,
    serving: Annotated[Path | None, typer.Option(help="Serving configuration to hold against it.")] = None,
    as_json: AsJson = False,
) -> int:
    """How many GPUs and nodes a model needs, and whether one node is enough. Works offline.

    With --serving also whether that configuration fits these GPUs: exit code 1 if it does not.
    """
    from cluster.planning.fit import fit
    from cluster.planning.memory import Load
    from cluster.planning.plan import plan_model

    usual = Load()
    load = Load(batch=batch or usual.batch, context=context or usual.context)
    answer = plan_model(model, gpu=gpu, node=node, load=load)
    found = None if serving is None else fit(load_config(serving), answer)
    if as_json:
        _print_json(answer.json() | ({} if found is None else {"serving": found.json()}))
    else:
        typer.echo("\n".join([answer.text(), *(["", f"{serving}:", *found.lines()] if found else [])]))
    return int(found is not None and bool(found.problems))


@app.command(epilog=f"Example: gangway cluster render {EXAMPLE} --out gang.yaml")
def render(
    config: File,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
    overrides: Overrides = [],  # noqa: B006  typer's way of saying "none given"
    allow_single_node: SingleNode = False,
    as_json: AsJson = False,
) -> None:
    """Write the manifest that `up` applies. Pure: asks no cluster."""
    text = _text(_documents(load_spec(config, overrides), allow_single_node), as_json)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text)


def _text(documents: list[dict[str, Any]], as_json: bool) -> str:
    from cluster.manifests.render import to_yaml

    return json.dumps(documents, indent=2) + "\n" if as_json else to_yaml(documents)


def _documents(spec: ClusterSpec, allow_single_node: bool) -> list[dict[str, Any]]:
    from cluster.manifests.render import render as render_spec

    return render_spec(spec, allow_single_node=allow_single_node)


@app.command(epilog=f"Example: gangway cluster doctor {EXAMPLE}")
def doctor(
    config: File,
    probe: Annotated[bool, typer.Option("--probe", help="Also run short pods that measure the all-reduce.")] = False,
    overrides: Overrides = [],  # noqa: B006
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> int:
    """Say whether this cluster can run this gang, and what to do where not. Changes nothing, except for --probe."""
    from cluster.doctor.checks import examine
    from cluster.doctor.facts import Reader
    from cluster.doctor.probe import probe_lines, run_probe
    from cluster.k8s.connection import connect

    spec = load_spec(config, overrides)
    client = connect(kubeconfig, context)
    findings = examine(Reader(client, spec).read(), spec)
    measured = run_probe(client, spec, time.sleep, time.monotonic) if probe else None
    if as_json:
        _print_json({"checks": [finding.json() for finding in findings], "probe": measured})
    for finding in () if as_json else findings:
        typer.echo(f"{finding.level:<8}{finding.check:<12}{finding.text}")
        if finding.fix:
            typer.echo(f"{'':<20}fix: {finding.fix}")
    if measured is not None and not as_json:
        typer.echo("\n".join(probe_lines(measured)))
    return int(any(finding.level == "fail" for finding in findings))


@app.command(epilog=f"Example: gangway cluster role {EXAMPLE} | kubectl apply -f -")
def role(config: File, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Print the Role that `doctor` asks for: what these commands do in the gang's namespace. Asks no cluster."""
    from cluster.doctor.role import role as role_in

    document = role_in(load_spec(config, overrides).namespace)
    typer.echo(_text([document], as_json), nl=False)


@app.command(epilog=f"Example: gangway cluster up {EXAMPLE}")
def up(
    config: File,
    overrides: Overrides = [],  # noqa: B006
    recreate: Annotated[bool, typer.Option("--recreate", help="End a running gang to change its template.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Take fields that another manager owns.")] = False,
    patient: Annotated[bool, typer.Option("--patient", help="Wait for room (nodes, quota, queue).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the server what would change, and stop.")] = False,
    allow_single_node: SingleNode = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Apply the gang and wait until `/readyz` answers through its Service."""
    from cluster.commands.session import interruptible, opened

    spec = load_spec(config, overrides)
    documents = _documents(spec, allow_single_node)
    with opened(spec, kubeconfig, context, _say(as_json)) as work:
        work.patient = patient
        if dry_run:
            _tell_alterations(work.compare(documents, force=force), as_json)
            return
        interruptible(lambda: work.up(documents, recreate=recreate, force=force), str(config))
        _tell_report(work, as_json)


def _tell_alterations(rows: list[Any], as_json: bool) -> None:
    if as_json:
        _print_json([{"kind": r.kind, "name": r.name, "does": r.verb, "fields": r.fields} for r in rows])
    for row in () if as_json else rows:
        typer.echo(f"if applied: {row}")


def _tell_report(work: Any, as_json: bool) -> None:
    from cluster.commands.report import report

    if as_json:
        _print_json(report(work.client, work.gang))


@app.command(epilog=f"Example: gangway cluster status {EXAMPLE} --json")
def status(
    config: File,
    overrides: Overrides = [],  # noqa: B006
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> int:
    """Show the gang by host: where each pod is, and what is wrong. Exit code 1 while it is not ready."""
    from cluster.commands.report import report
    from cluster.k8s.connection import connect
    from cluster.status.snapshot import gang_of

    gang = gang_of(load_spec(config, overrides))
    answer = report(connect(kubeconfig, context), gang)
    if as_json:
        _print_json(answer)
        return int(not answer["ready"])
    typer.echo(f"{answer['namespace']}/{answer['name']}: {answer['stage']}")
    for pod in answer["pods"]:
        host = pod["role"] if pod["host"] is None else f"{'spare' if pod['spare'] else 'host'} {pod['host']}"
        ready = "ready" if pod["ready"] else "not ready"
        where = pod["node"] or "no node"
        typer.echo(f"  {host:<9}{pod['pod']:<44}{where:<24}{pod['phase']:<10}{ready:<11}{pod['reason'] or ''}".rstrip())
    if answer["spares_missing"]:
        typer.echo(f"  note: {answer['spares_missing']}")
    for problem in answer["problems"]:
        typer.echo(f"  problem: {problem}")
    return int(not answer["ready"])


@app.command(epilog=f"Example: gangway cluster logs {EXAMPLE} --host 1 --previous")
def logs(
    config: File,
    host: Annotated[int | None, typer.Option(min=0, help="Pod of this host index; the head's if not given.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="KubeRay's operator instead.")] = False,
    previous: Annotated[bool, typer.Option("--previous", help="Of the run before the last restart.")] = False,
    lines: Annotated[int | None, typer.Option(min=1, help="Only the last lines.")] = None,
    overrides: Overrides = [],  # noqa: B006
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of one pod."""
    from cluster.commands.report import read_logs
    from cluster.k8s.connection import connect
    from cluster.status.snapshot import gang_of

    gang = gang_of(load_spec(config, overrides))
    client = connect(kubeconfig, context)
    text = read_logs(client, gang, host=host, operator=operator, previous=previous, lines=lines)
    if as_json:
        _print_json({"lines": text.splitlines()})
    else:
        sys.stdout.write(text)


@app.command(epilog=f"Example: gangway cluster submit {EXAMPLE} --set ray.kind=cluster")
def submit(
    config: File,
    batch_files: Annotated[list[str] | None, typer.Argument(metavar="[INPUT OUTPUT [-- OPTIONS]]")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="A batch job; OPTIONS are `gangway batch`'s.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="For a batch job's end; with 1 if it fails.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print a batch job's manifest, and stop.")] = False,
    overrides: Overrides = [],  # noqa: B006
    allow_single_node: SingleNode = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Run the serving command again on a standing RayCluster (`ray.kind: cluster`); with --batch a batch job."""
    from cluster.commands.session import interruptible, opened
    from cluster.manifests.batch_job import batch_documents, batch_spec

    spec, call = load_spec(config, overrides), batch_files or []
    if batch:
        job, documents = batch_spec(spec), batch_documents(spec, call, allow_single_node=allow_single_node)
        if dry_run:
            typer.echo(_text(documents, as_json), nl=False)
            return
        with opened(job, kubeconfig, context, _say(as_json)) as work:
            work.create(documents)
            named = _tell_batch(config, job, as_json)
            if wait:
                interruptible(work.wait_ended, named, again=None)
        return
    if call or dry_run or wait:
        raise SpecError("INPUT, OUTPUT, --wait and --dry-run are for --batch")
    if spec.ray.kind != "cluster":
        raise SpecError("ray.kind is job: KubeRay submits the command by itself", fix="run `gangway cluster up`")
    with opened(spec, kubeconfig, context, _say(as_json)) as work:
        interruptible(lambda: work.resubmit(spec.entrypoint), str(config))
        _tell_report(work, as_json)


def _tell_batch(config: Path, job: ClusterSpec, as_json: bool) -> str:
    """Say how to follow the job; returns how other commands name it."""
    named = f"{config} --set name={job.name}"
    _say(as_json)(f"follow it with `gangway cluster logs {named}`, remove it with `gangway cluster down {named}`")
    if as_json:
        _print_json({"name": job.name, "namespace": job.namespace})
    return named


@app.command(epilog=f"Example: gangway cluster down {EXAMPLE}")
def down(
    config: File,
    overrides: Overrides = [],  # noqa: B006
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Delete the gang and wait until nothing of it is left."""
    from cluster.commands.session import opened

    spec = load_spec(config, overrides)
    say = _say(as_json)
    with opened(spec, kubeconfig, context, say) as work:
        deleted = work.down()
    if as_json:
        _print_json({"deleted": deleted})
    elif not deleted:
        say("there was nothing to delete")
