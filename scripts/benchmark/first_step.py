"""Run diffgen-train up to its first step, and print how long that took: python first_step.py [--whole] OVERRIDES

With --whole the run goes on to its end.
"""

import json
import os
import sys
import time

started = time.perf_counter()

import torch  # noqa: E402

imported = time.perf_counter()


def main() -> None:
    """Stop the run, or let it go on, once its first step is done."""
    whole = "--whole" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--whole"]
    from diffgen.cli import train
    from diffgen.data.base import Stored
    from diffgen.training.trainer import Trainer

    step = Trainer._step

    def first(self: Trainer, stored: Stored) -> object:
        entered = time.perf_counter()
        done = step(self, stored)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        told = {
            "import_torch": imported - started,
            "first_step_begins": entered - imported,
            "first_step_done": time.perf_counter() - imported,
        }
        print(json.dumps(told), flush=True)
        if not whole:
            os._exit(0)
        Trainer._step = step  # type: ignore[method-assign]
        return done

    Trainer._step = first  # type: ignore[method-assign, assignment]
    sys.exit(train.main())


if __name__ == "__main__":
    main()
