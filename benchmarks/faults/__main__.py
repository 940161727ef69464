"""Faults of real machines, repeated: python -m benchmarks.faults --minutes=N [--seed=S] [--out=DIR]
[--continue] [--lanes=2]

Each round disturbs real commands on the smallest model and data, and looks at what is left:
    train, prepare, evaluate, import, export   kill -9, half of them inside a write; what was left is read; the same
                                               command goes on, and
                                               what it writes must equal, to the bit, what an undisturbed one has
                                               written
    damage                                     flipped bits, cut files, zeros, in whatever the commands have written
    full disk                                  a disk that is too small (where the system allows to mount one)
    hosts                                      two hosts train one run, and host 0 or host 1 is killed
    hostile                                    records made to do harm, from a seed (benchmarks/hostile.py)

A line a round and one for each kill. The last line of stdout is JSON: rounds, kills, and what was lost: unreadable
(whole before, and refused or gone now), unequal (read without a word, and other than it was), crashes (a traceback in
place of one line), escapes (a record that reached outside its folder). Ends with 1 where anything was lost. Folders of
rounds with faults stay in DIR/lost.

With --continue the rounds of an earlier call count on, also of one that was interrupted. Needs no accelerator and no
data.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import sys
import time

from tqdm import tqdm

from benchmarks.faults import reference, rounds
from benchmarks.faults.campaign import STATE, Campaign, Outcome, Round, sums
from benchmarks.faults.reference import Reference
from dreamjax.data.storage import processes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes",
        type=float,
        required=True,
        help="time after which no further round begins; the first call also makes the undisturbed outputs",
    )
    parser.add_argument("--seed", type=int, default=0, help="what is drawn: moments, places, records")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/faults"),
        help="folder for everything (default runs/faults)",
    )
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="add to the rounds in --out")
    parser.add_argument("--lanes", type=int, default=2, help="rounds at the same time")
    parser.add_argument("--only", choices=rounds.KINDS, help="rounds of one kind alone")
    return parser.parse_args()


def opened(out: pathlib.Path, seed: int, goes_on: bool) -> tuple[Campaign, Reference]:
    """The campaign so far and what it measures by; SystemExit with one line where --out does not fit."""
    begun = (out / STATE).exists()
    if begun and not goes_on:
        sys.exit(f"benchmarks.faults: --out: {out} holds a campaign; add --continue, or give another folder")
    if not begun:
        return Campaign(seed), reference.make(out / "reference")
    campaign = Campaign.load(out)
    if campaign.seed != seed:
        sys.exit(f"benchmarks.faults: --seed: the campaign in {out} was begun with {campaign.seed}")
    return campaign, reference.opened(out / "reference")


def main() -> int:
    given = arguments()
    out = given.out.absolute()
    campaign, made = opened(out, given.seed, given.goes_on)
    campaign.save(out)
    try:
        run(campaign, made, out, given.minutes * 60, given.lanes, given.only)
    except KeyboardInterrupt:
        print("interrupted; --continue goes on", file=sys.stderr)
    print("\n".join([*campaign.faults, campaign.pace(given.lanes)]))
    print(json.dumps(campaign.facts()))
    return 1 if campaign.faults else 0


def run(campaign: Campaign, made: Reference, out: pathlib.Path, seconds: float, lanes: int, only: str | None):
    """Rounds until the time is over, so many at once; what each found is kept as soon as it ends."""
    os.environ.update(made.environment)  # of the lanes, which read what commands have written
    until = time.monotonic() + seconds
    shutil.rmtree(out / "running", ignore_errors=True)  # of an interrupted call
    kinds = (only,) if only else rounds.possible()
    with processes.pool(lanes) as pool, tqdm(unit="round", disable=None) as bar:
        running: dict[concurrent.futures.Future, Round] = {}
        while running or time.monotonic() < until:
            while len(running) < lanes and time.monotonic() < until:
                next_ = campaign.next_round(kinds)
                running[pool.submit(rounds.play, next_, made, out)] = next_
            campaign.save(out)
            for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                finish(campaign, running.pop(future), future.result(), bar)
                campaign.save(out)


def finish(campaign: Campaign, done: Round, outcome: Outcome, bar: tqdm):
    """Adds a round and says what it found."""
    campaign.add(done, outcome)
    bar.update()
    tell = f"round {done.number} {done.kind}: {sums(outcome.counts)}"
    with bar.external_write_mode(file=sys.stdout):
        print(
            "\n".join(
                [tell, *(f"  {line}" for line in outcome.lines), *(f"  FAULT {fault}" for fault in outcome.faults)]
            ),
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
