"""A throw-away Slurm on this machine: munged, slurmctld and some virtual nodes, in one folder.

All of it listens on the loopback interface alone and dies with the process that started it. Run as
a script it says what is missing, with exit status 77.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
MISSING = 77

CONF = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
# a job that is queued again may begin as soon as its old credential has expired
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=30
SchedulerParameters=sched_interval=2,bf_interval=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000"


def missing() -> str:
    """What keeps a Slurm from being started here; empty where nothing does."""
    places = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [name for name in PROGRAMS if not shutil.which(name, path=places)]
    if lacking:
        return (
            f"no {', '.join(lacking)}: the tests of Slurm want Debian's packages slurm-wlm and "
            "munge (apt-get install slurm-wlm munge); none of their services need run"
        )
    if os.geteuid() != 0:
        return "not root: Slurm's daemons, started for the tests, want to be root"
    return ""


class MiniCluster:
    """A running one.

    Args:
        folder: of its own, readable by all; the daemons write nowhere else.
        nodes: how many.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.names = [f"n{i + 1}" for i in range(nodes)]
        self.environment = {
            **os.environ,
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
            "SLURM_CONF": str(self.conf),
        }
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons and wait until all nodes are idle."""
        for name in ("state", "log", "munge"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        host = socket.gethostname().split(".")[0]
        port, *ports = free_ports(1 + len(self.names))
        nodes = "\n".join(
            NODE.format(name=name, host=host, port=at)
            for name, at in zip(self.names, ports, strict=True)
        )
        self.conf.write_text(CONF.format(host=host, port=port, folder=self.folder, nodes=nodes))
        munge = {
            "key-file": key,
            "socket": key.with_name("socket"),
            "pid-file": key.with_name("pid"),
            "log-file": self.folder / "log" / "munged.log",
            "seed-file": key.with_name("seed"),
        }
        options = [f"--{name}={path}" for name, path in munge.items()]
        self._daemon("munged", "--foreground", "--force", "--num-threads=1", *options)
        wait_for(munge["socket"].exists, 20, "munged", self.logs)
        self._daemon("slurmctld", "-D", "-i", "-f", str(self.conf))
        for name in self.names:
            self._daemon("slurmd", "-D", "-f", str(self.conf), "-N", name)
        wait_for(self._idle, 60, "idle nodes", self.logs)

    def _daemon(self, *command: str) -> None:
        # with us, whatever ends us, it ends too
        self.daemons.append(
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def _idle(self) -> bool:
        states = self.ask("sinfo", "-h", "-N", "-o", "%T", check=False).split()
        return states == ["idle"] * len(self.names)

    def ask(self, *command: str, check: bool = True) -> str:
        """What a Slurm program prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def logs(self) -> str:
        """The last lines of every daemon."""
        tails = (
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted((self.folder / "log").glob("*.log"))
        )
        return "\n".join(tails)

    def stop(self) -> None:
        """Kill all jobs, then the daemons, newest first; nothing of it is left."""
        if len(self.daemons) > 1:
            jobs = self.ask("squeue", "-h", "-o", "%A", check=False).split()
            for job in set(jobs):
                self.ask("scancel", "--signal=KILL", "--full", job, check=False)
                self.ask("scancel", job, check=False)
            deadline = time.monotonic() + 20
            while self.ask("squeue", "-h", check=False) and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """Processes of this cluster: its daemons, and those with its configuration."""
        mark = f"SLURM_CONF={self.conf}".encode()
        own = os.getpid()
        return [pid for pid, env in environments() if mark in env.split(b"\0") and pid != own]

    def listens_on(self) -> set[str]:
        """The addresses on which the daemons listen for TCP connections."""
        pids = [daemon.pid for daemon in self.daemons]
        inodes = {inode for pid in pids for inode in sockets(pid)}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        six = Path("/proc/net/tcp6")
        rows += [x.split() for x in six.read_text().splitlines()[1:]] if six.exists() else []
        heard = [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]
        return {socket.inet_ntoa(bytes.fromhex(x)[::-1]) if len(x) == 8 else x for x in heard}


def sockets(pid: int) -> Iterator[str]:
    """The inodes of a process's open sockets."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("socket:["):
            yield target[8:-1]


def environments() -> Iterator[tuple[int, bytes]]:
    """Number and environment of every process that may be looked at."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            yield int(path.parent.name), path.read_bytes()
        except OSError:
            continue  # it is gone, or not ours


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def wait_for(ready: object, seconds: float, what: str, told: object = str) -> None:
    """Until `ready()` is true.

    Raises:
        AssertionError: it was not within `seconds`; with what `told()` says.
    """
    assert callable(ready) and callable(told)
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"no {what} after {seconds:g} s\n{told()}"
        time.sleep(0.2)


@contextmanager
def mini_cluster(nodes: int) -> Iterator[MiniCluster]:
    """A cluster, stopped and removed at the end, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="workbench-slurm-"))
    folder.chmod(0o755)
    cluster = MiniCluster(folder, nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    """Say what is missing; with `hold`, keep a cluster of two nodes until the end of input."""
    if why := missing():
        sys.stderr.write(f"{why}\n")
        return MISSING
    if arguments == ["hold"]:
        with mini_cluster(2) as cluster:
            sys.stdout.write(f"export SLURM_CONF={cluster.conf}\n")
            sys.stdout.flush()
            sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
