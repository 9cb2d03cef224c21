"""The operator's page as HTML: a verdict first, then six numbers, then what they are made of.

It is whole without its script, which only fetches it anew. Every text that a user chose is escaped here.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

from eorouter.jobs.census import Minute
from eorouter.storage.operators import Operator
from eorouter.surface.operator.state import SILENT_S, Dispatcher, LedgerState, State, Worker

_GAP = "\N{NARROW NO-BREAK SPACE}"
_RECENT = 10  # full minutes that the present pace is the mean of
_SHARDS_SHOWN = 3
_NAME_MAX = 48
_BAR, _BAR_LEAST, _HEIGHT = 12, 4.0, 96
_PAUSED = ' <b class="mild">paused</b>'
_LIVE = (
    '<script src="/operator/console.js" defer></script><noscript><meta http-equiv="refresh" content="30"></noscript>'
)


def login(message: str = "") -> str:
    """The page that lets an operator in; `message` says why it did not."""
    told = f'<p class="wrong" role="alert">{escape(message)}</p>' if message else ""
    return _document(
        "Log in",
        '<main class="door"><h1>eorouter <span>operator</span></h1>\n'
        f"{told}"
        '<form method="post" action="/operator/login">\n'
        '<label>E-mail<input type="email" name="email" autocomplete="username" required autofocus></label>\n'
        '<label>Password<input type="password" name="password" autocomplete="current-password" required></label>\n'
        "<button>Log in</button></form>\n"
        "<p>Accounts become operators with <code>eorouter operators --add EMAIL</code>.</p></main>",
    )


def console(state: State, operator: Operator) -> str:
    """The page."""
    head = (
        "<header><strong>eorouter <span>operator</span></strong>"
        f'<span class="who">{escape(operator.email)}</span>'
        '<form method="post" action="/operator/logout"><button id="logout">Log out</button></form></header>\n'
        '<p id="stale" class="wrong" role="alert" hidden></p>\n'
    )
    parts = (
        _verdict(state), _tiles(state), _queue(state), _throughput(state.minutes), _jobs(state), _workers(state),
        _dispatchers(state), _failures(state),
        f'<div class="beside">{_installation(state)}{_ledger(state.ledger, state)}</div>',
    )  # fmt: skip
    title = f"{len(state.troubles)} to look at" if state.troubles else "All is well"
    return _document(title, head + "<main>\n" + "\n".join(parts) + "\n</main>", refreshes=True)


def _document(title: str, body: str, *, refreshes: bool = False) -> str:
    live = _LIVE if refreshes else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f'<title>{escape(title)} · eorouter operator</title><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="/operator/console.css">{live}'
        f"</head>\n<body>{body}</body></html>\n"
    )


def _verdict(state: State) -> str:
    at = f'<time datetime="{state.at:%Y-%m-%dT%H:%M:%SZ}">{state.at:%H:%M:%S} UTC</time>'
    if not state.troubles:
        return f'<section class="verdict well"><h1>All is well</h1>{at}</section>'
    lines = "".join(f"<li>{escape(each)}</li>" for each in state.troubles)
    word = "thing" if len(state.troubles) == 1 else "things"
    return (
        f'<section class="verdict ill"><h1>{len(state.troubles)} {word} to look at</h1>{at}<ul>{lines}</ul></section>'
    )


def _tiles(state: State) -> str:
    by_kind = {lane.kind: lane for lane in state.lanes}
    waiting = " · ".join(f"{count(by_kind[kind].shards)} {kind}" for kind in ("interactive", "batch"))
    oldest = state.oldest
    full = list(islice(reversed(state.minutes[:-1]), _RECENT))
    shards, pixels = (sum(getattr(each, name) for each in full) / len(full) for name in ("shards", "pixels"))
    threads, busy = (sum(getattr(each, name) for each in state.workers) for name in ("threads", "executing"))
    failed, tries = sum(each.jobs for each in state.failures), sum(each.failures for each in state.minutes)
    tiles = (
        ("Shards open", count(sum(lane.shards for lane in state.lanes)), waiting, ""),
        ("Oldest open job", span(oldest.age_s) if oldest else "none", _name(oldest.org_name) if oldest else "", ""),
        ("Shards a minute", rate(shards), f"{si(pixels)}pixels a minute", ""),
        ("Threads busy", f"{busy}{_GAP}/{_GAP}{threads}", f"{len(state.workers)} workers", "" if threads else "ill"),
        ("Jobs failed this hour", count(failed), f"{count(tries)} tries failed", "mild" if failed else ""),
        ("Ledger", *_ledger_words(state.ledger, state)),
    )
    return (
        '<section class="tiles">'
        + "".join(
            f'<div class="tile {tone}"><h2>{name}</h2><p class="big">{value}</p><p>{more or "&nbsp;"}</p></div>'
            for name, value, more, tone in tiles
        )
        + "</section>"
    )


def _queue(state: State) -> str:
    rows = [
        (
            lane.kind,
            count(lane.queued),
            count(lane.running),
            count(lane.shards),
            span(lane.age_s) if lane.shards else "–",
        )
        for lane in state.lanes
    ]
    heads = ("Class", "#Jobs queued", "#Jobs running", "#Shards open", "#Longest wait of a shard")
    parts = [_table(heads, rows)]
    if (job := state.oldest) is not None:
        parts.append(
            f"<p>Oldest open job: <code>{job.job_id}</code> of {_name(job.org_name)} <code>{job.org_id}</code>, "
            f"{escape(job.method)}, {job.state}, queued {span(job.age_s)} ago.</p>"
        )
    if state.organisations:
        owners = [
            (f"{_name(each.org_name)} <code>{each.org_id}</code>{_PAUSED if each.is_paused else ''}", each.kind,
             count(each.queued), count(each.running), count(each.shards), span(each.age_s))
            for each in state.organisations
        ]  # fmt: skip
        parts.append(_table(("Organisation", "Class", *heads[1:]), owners))
    return _section("Queue", parts)


def _throughput(minutes: Sequence[Minute]) -> str:
    charts = (
        ("Shards a minute", [each.shards for each in minutes], [each.failures for each in minutes]),
        ("Pixels a minute", [each.pixels for each in minutes], []),
    )
    parts = [_chart(*each) for each in charts]
    return _section("Throughput of the last hour", [f'<div class="pair">{"".join(parts)}</div>'])


def _chart(name: str, values: Sequence[int], failed: Sequence[int]) -> str:
    """Bars by minute, the newest on the right; failed tries stand in front, in the colour of trouble."""
    top = max([*values, *failed, 1])
    width = _BAR * len(values)

    def bars(values: Sequence[int], tone: str) -> str:
        heights = [max(value / top * _HEIGHT, _BAR_LEAST) if value else 0.0 for value in values]
        return "".join(
            f'<rect class="{tone}" x="{number * _BAR + 1}" y="{_HEIGHT - height:.1f}" width="{_BAR - 2}" '
            f'height="{height:.1f}"/>'
            for number, height in enumerate(heights)
            if height
        )

    told = f"{si(sum(values)).strip()} in the last hour"
    told += f", {count(sum(failed))} tries failed" if any(failed) else ""
    peak = si(max(values)).strip()
    return (
        f"<figure><figcaption>{name}<span>peak {peak}</span></figcaption>"
        f'<svg viewBox="0 0 {width} {_HEIGHT + 1}" role="img" aria-label="{name}, peak {peak}: {told}" '
        f'preserveAspectRatio="none"><line x1="0" x2="{width}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
        f"{bars(values, 'done')}{bars(failed, 'failed')}</svg>"
        f'<p class="ends"><span>{len(values)} min ago</span><span>{told}</span><span>now</span></p></figure>'
    )


def _jobs(state: State) -> str:
    ended = ("completed", "failed", "cancelled")
    chips = "".join(
        f'<li class="{"mild" if name == "failed" and number else ""}"><b>{count(number)}</b> {name}'
        f"{'<small> 24 h</small>' if name in ended else ''}</li>"
        for name, number in state.jobs.items()
    )
    return _section("Jobs by state", [f'<ul class="chips">{chips}</ul>'])


def _workers(state: State) -> str:
    heads = ("Worker", "Dispatcher", "Host", "#Busy", "Shards", "#Memory", "#Last word")
    rows = [
        (escape(each.name), f"<code>{each.dispatcher_id[-6:]}</code>", escape(each.host),
         f"{each.executing}{_GAP}/{_GAP}{each.threads}", _shards(each), _memory(each),
         _silence(each.silent_s, SILENT_S))
        for each in state.workers
    ]  # fmt: skip
    return _section("Workers", [_table(heads, rows) if rows else '<p class="wrong">No worker is there.</p>'])


def _shards(worker: Worker) -> str:
    shown = ", ".join(f"<code>{escape(each)}</code>" for each in worker.shards[:_SHARDS_SHOWN])
    more = len(worker.shards) - _SHARDS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown or '<span class="quiet">idle</span>'


def _memory(worker: Worker) -> str:
    return f"{size(worker.memory_bytes)} of {size(worker.memory_limit_bytes)}"


def _silence(seconds: float, limit: float) -> str:
    text = f"{span(seconds)} ago"
    return f'<b class="bad">{text}</b>' if seconds > limit else text


def _dispatchers(state: State) -> str:
    heads = ("Dispatcher", "Host", "Since (UTC)", "Build", "#Threads", "#With it", "#Heartbeat", "Pages")
    rows = [
        (f"<code>{each.id}</code>", escape(each.host), f"{each.started_at:%Y-%m-%d %H:%M:%S}",
         f"{escape(each.version)} <code>{escape(each.build[:12])}</code>", count(each.threads), count(each.in_flight),
         _silence(each.silent_s, 0 if not each.is_alive else 15), _dashboard(each))
        for each in state.dispatchers
    ]  # fmt: skip
    return _section("Dispatchers", [_table(heads, rows) if rows else '<p class="wrong">No dispatcher was seen.</p>'])


def _dashboard(dispatcher: Dispatcher) -> str:
    if dispatcher.dashboard is None:
        return '<span class="quiet">out of reach from here</span>' if dispatcher.is_alive else "dead"
    return f'<a id="dask-{dispatcher.id}" href="{dispatcher.dashboard}">Dask dashboard</a>'


def _failures(state: State) -> str:
    heads = ("Code", "#Jobs", "Last one", "Organisation", "Method", "Message")
    rows = [
        (f"<code>{escape(each.code)}</code>", count(each.jobs), f"<code>{each.last_id}</code>",
         _name(each.last_org_name), escape(each.last_method), escape(each.last_message[:300]))
        for each in state.failures
    ]  # fmt: skip
    nothing = '<p class="quiet">No job failed in the last hour.</p>'
    return _section("Failures of the last hour", [_table(heads, rows) if rows else nothing])


def _installation(state: State) -> str:
    rows = [
        (name, f'<b class="{"good" if part.state == "ready" else "bad"}">{part.state.replace("_", " ")}</b>',
         escape(part.message))
        for name, part in state.readiness.parts.items()
    ]  # fmt: skip
    return _section("Installation", [_table(("Part", "State", ""), rows)])


def _ledger(ledger: LedgerState, state: State) -> str:
    word, when, tone = _ledger_words(ledger, state)
    faults = "".join(f"<li>{escape(each)}</li>" for each in ledger.faults[:20])
    more = f"<li>and {count(len(ledger.faults) - 20)} more</li>" if len(ledger.faults) > 20 else ""
    took = f", in {ledger.seconds:.1f} s" if ledger.checked_at else ""
    colour = {"ill": "bad", "": "good" if ledger.checked_at else ""}[tone]
    return _section(
        "Ledger",
        [
            f'<p><b class="{colour}">{word}</b>, {when}{took}.</p>',
            f'<ul class="wrong">{faults}{more}</ul>' if faults else "",
            '<form method="post" action="/operator/ledger"><button id="check">Check it now</button></form>',
            '<p class="quiet">Replays the log of all transfers against the balances, and looks for money that is held '
            "for jobs which have ended.</p>",
        ],
    )


def _ledger_words(ledger: LedgerState, state: State) -> tuple[str, str, str]:
    """What the check says, when it did, and the tone to say it in."""
    if ledger.checked_at is None:
        return "…", "being checked", ""
    when = f"checked {span((state.at - ledger.checked_at).total_seconds())} ago"
    if ledger.problem:
        return "unchecked", when, "ill"
    if ledger.faults:
        return f"{count(len(ledger.faults))} fault{'s' if len(ledger.faults) > 1 else ''}", when, "ill"
    return "balances", when, ""


def _name(text: str) -> str:
    """An organisation's name, which may be longer than a column is wide."""
    return escape(text if len(text) <= _NAME_MAX else f"{text[: _NAME_MAX - 1]}…")


def count(number: int) -> str:
    """A number in groups of three."""
    return f"{number:,}".replace(",", _GAP)


def rate(number: float) -> str:
    """A mean, with a decimal where it is small."""
    return f"{number:.1f}" if 0 < number < 10 else count(round(number))


def si(number: float) -> str:
    """Three digits and an SI prefix, with the space that stands before a unit."""
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= unit:
            return f"{number / unit:.3g}{_GAP}{prefix}"
    return f"{number:.3g}{_GAP}"


def size(number: int) -> str:
    """Bytes, in MiB or GiB."""
    return f"{number / 2**30:.1f}{_GAP}GiB" if number >= 2**30 else f"{number / 2**20:.0f}{_GAP}MiB"


def span(seconds: float) -> str:
    """A length of time for people: 12 s, 3 min, 2 h, 4 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{_GAP}{unit}"
    return f"{max(seconds, 0):.0f}{_GAP}s"


def _section(title: str, parts: Iterable[str]) -> str:
    return f"<section><h2>{title}</h2>\n" + "\n".join(parts) + "</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; heads that begin with # are of columns of numbers."""
    tones = ['class="n"' if head.startswith("#") else "" for head in heads]
    head = "".join(f"<th {tone}>{name.lstrip('#')}</th>" for name, tone in zip(heads, tones, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td {tone}>{cell}</td>' for cell, tone in zip(row, tones, strict=True))}</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
