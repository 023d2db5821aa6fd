"""`decloud status [PATH]`: what is safe, what is on its way, and who holds it."""

from __future__ import annotations

import click

from fsdecloud.cli import drivers
from fsdecloud.cli.output import emit, emit_json
from fsdecloud.cli.run import USAGE
from fsdecloud.cli.view import as_json, as_lines, take_view
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError


@click.command("status")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def command(path: str | None, json_output: bool) -> int:
    """Show the state of the volume that PATH lies in, or of everything in this home.

    Exit code 0: everything is stored with all its receipts (D2); 3: some of it is still on its way; 4: degraded, a peer is
    down or sends wrong data, or a part does not answer; 1: nothing is mounted.
    """
    paths = find_paths()
    running = drivers.mounted_volumes(paths)
    if path is not None:
        chosen: list[str] = [drivers.volume_of_path(paths, path)]
    elif json_output and len(running) > 1:
        raise UsageError(f"several volumes are mounted ({', '.join(running)}): name a path in one of them")
    else:
        chosen = running
    views = [take_view(paths, volume) for volume in chosen] or [take_view(paths, None)]
    for view in views:
        if json_output:
            emit_json(as_json(view))
        else:
            for line in as_lines(view):
                emit(line)
    if not chosen:
        if not json_output:
            emit("no volume is mounted")
        return USAGE
    return max(view.exit_code for view in views)
