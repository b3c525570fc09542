"""Say what would make a run hang or fail: `python jobs/doctor.py [--config FILE] key.sub=value ...`."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.paths import default_root
from jobs import cli
from pipelines.config import PretrainConfig


def main(argv: list[str]) -> int:
    """Examine what `argv` would train; 2 where something would make it fail."""
    command = cli.parse(PretrainConfig, argv, defaults_file=cli.CONFIGS / "demo.yaml",
                        description="Say what would make a run with these keys hang or fail; exits 0 where nothing "
                                    "would, else 2. It takes pretrain's keys, and looks at the demo without any.")
    print("\n".join(command.difference), flush=True)
    from pipelines.doctor import examine  # late: torch and ray take seconds to import

    faults = 0
    for found in examine(command.config, default_root()):
        mark = "FAULT" if not found.ok else "note " if found.mend else "ok   "
        print(f"{mark} {found.name:<20} {found.finding}", flush=True)
        if found.mend:
            print(f"{'':27}{'mend' if not found.ok else 'advice'}: {found.mend}", flush=True)
        faults += not found.ok
    print(f"{faults} of these would make the run fail" if faults else "nothing stands in the way of this run")
    return 2 if faults else 0


if __name__ == "__main__":
    cli.run(main)
