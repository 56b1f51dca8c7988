"""A Slurm of this machine alone, on the loopback address: munged, slurmctld and slurmd as they come with Debian."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
CONFIGURATION = """\
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=1
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextlib.contextmanager
def small_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Within the block, it runs. Yields the environment of its commands."""
    for name in ("state", "spool"):
        (folder / name).mkdir(mode=0o755)
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(host=host, folder=folder, ctld=free_port(), slurmd=free_port(), cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    # Two devices that every machine has stand for two GPUs.
    gpus = "".join(f"NodeName={host} Name=gpu File=/dev/{name}\n" for name in ("zero", "full"))
    (folder / "gres.conf").write_text(gpus, encoding="utf-8")
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
    variables = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file")]
    munge += [f"--key-file={folder}/key", f"--seed-file={folder}/munge.seed", "--force", "--foreground"]
    commands = [["munged", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]]
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "daemons.txt").open("wb") as log:
        try:
            for command in commands:
                started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log))
                time.sleep(1)
            until = time.monotonic() + 60
            while b"idle" not in (said := subprocess.run(["sinfo", "-h"], env=variables, capture_output=True)).stdout:
                assert time.monotonic() < until, (said, (folder / "daemons.txt").read_text(errors="replace"))
                time.sleep(0.5)
            yield variables
        finally:
            for one in reversed(started):
                one.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.wait(10)
                one.kill()
                one.wait()
