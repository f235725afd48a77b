"""Submit a run to SLURM through submitit: one torchrun a node, requeued until it is done.

    python scripts/slurm.py --nodes 2 --gpus 8 --minutes 240 -- experiment=cifar10_edm run_dir=/shared/runs/edm
    python scripts/slurm.py --gpus 2 --local -- dataset=digits run_dir=outputs/dry    a dry run, on this machine

The run directory must be named, and be on a disk that all nodes see: a job that is taken away or out of time goes on
from there. Two minutes before the end submitit stops the processes (SIGTERM: they write a checkpoint) and submits the
same again. Needs `pip install submitit`.
"""

import argparse
import os
import subprocess
import sys
from contextlib import suppress

import submitit

NOTICE = 120  # seconds before the end of a job in which a checkpoint is written
MOST = 1000  # times that a job is submitted again; submitit's default is 3


class Run:
    """What each node executes; submitit asks it what to submit when a job is taken away or out of time."""

    def __init__(self, gpus: int, settings: list[str]) -> None:
        """Args: gpus: processes on each node; settings: of diffgen-train, with run_dir."""
        self.gpus, self.settings = gpus, settings
        self.processes: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Start this node's processes; the first node's address is where they meet."""
        job = submitit.JobEnvironment()
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={job.num_nodes}"]
        command += [f"--node_rank={job.node}", f"--nproc_per_node={self.gpus}", "--rdzv_backend=c10d"]
        command += [f"--rdzv_endpoint={job.hostnames[0]}:29500", f"--rdzv_id={job.job_id}"]
        self.processes = subprocess.Popen([*command, "-m", "diffgen.cli.train", *self.settings])
        return self.processes.wait()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Have a checkpoint written, then the same again: the run directory knows where it was."""
        if self.processes:
            self.processes.terminate()
            with suppress(subprocess.TimeoutExpired):  # the run goes on from an earlier checkpoint then
                self.processes.wait(NOTICE / 2)
        return submitit.helpers.DelayedSubmission(Run(self.gpus, self.settings))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="on each node")
    parser.add_argument("--minutes", type=int, default=240, help="of one job; it is submitted again until it is done")
    parser.add_argument("--partition")
    parser.add_argument("--local", action="store_true", help="run here, without SLURM")
    parser.add_argument("--logs", default="outputs/slurm")
    parser.add_argument("settings", nargs="+", help="of diffgen-train, after --")
    given = parser.parse_args()
    if not any(setting.startswith("run_dir=") for setting in given.settings):
        parser.error("run_dir=FOLDER must be among the settings: a requeued job goes on from there")
    executor = submitit.AutoExecutor(folder=given.logs, cluster="local" if given.local else None)
    executor.update_parameters(nodes=given.nodes, tasks_per_node=1, timeout_min=given.minutes, name="diffgen")
    if not given.local:
        again = {"slurm_signal_delay_s": NOTICE, "slurm_max_num_timeout": MOST}
        executor.update_parameters(gpus_per_node=given.gpus, **again)
        if given.partition:
            executor.update_parameters(slurm_partition=given.partition)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    job = executor.submit(Run(given.gpus, given.settings))
    print(f"job {job.job_id}, log {job.paths.stdout}")
    if given.local:
        print(f"exit code {job.result()}")


if __name__ == "__main__":
    main()
