"""A real Slurm of several nodes on one Linux machine, for the tests: no daemon of the machine's own is touched.

The login host (with slurmctld) and every node have their own namespaces: hostname, network, processes and mounts, so
that 127.0.0.1, /dev/shm and power are a node's own. Nodes meet on a bridge in the login host's network namespace, which
nothing outside can reach. Ending the login host's first process ends all of it. By hand:

    python tests/slurm/cluster.py 4      # a shell on the login host of 4 nodes; leaving it takes the cluster down
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "ip": "iproute2"}
NET = "10.77.0"  # the login host is .254; seen only inside the cluster
CPUS, GPUS = 16, 4  # that a node claims to have
os.environ["PATH"] += ":/usr/sbin:/sbin"  # where the daemons are


def cannot() -> str | None:
    """Why there can be no cluster here, or None. Installs what is missing where MEGAHOUR_SLURM=1 asks for it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm cluster in namespaces needs root on Linux"
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing and os.environ.get("MEGAHOUR_SLURM") == "1" and shutil.which("apt-get"):
        _install(missing)
        missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        return f"not installed: {', '.join(missing)} (MEGAHOUR_SLURM=1 installs them with apt)"
    if subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True).returncode:
        return "this machine allows no namespaces (a container without --privileged)"
    return None


def _install(packages: list[str]) -> None:
    policy = Path("/usr/sbin/policy-rc.d")  # 101: start no daemon on installation
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    try:
        subprocess.run([*apt, "update"], env=env, check=False)
        subprocess.run([*apt, "install", "-y", "--no-install-recommends", *packages], env=env, check=False)
    finally:
        if ours:
            policy.unlink()


@dataclass
class Cluster:
    """A running cluster. All commands run on its login host, as a user's would."""

    folder: Path
    nodes: list[str]
    login: int  # pid of the login host's first process

    def run(self, *command: str, check: bool = True, **keywords: object) -> str:
        """Run a command on the login host; its output, stripped."""
        cwd, env = keywords.pop("cwd", os.getcwd()), dict(os.environ) | dict(keywords.pop("env", {}))  # type: ignore
        done = subprocess.run(
            [*self._enter(self.login), "env", "-C", str(cwd), *command],
            env=env | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout.strip()

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    @staticmethod
    def _enter(pid: int) -> list[str]:
        return ["nsenter", f"--target={pid}", *"--mount --uts --ipc --net --pid --".split()]

    def on(self, node: str, *command: str) -> str:
        """Run a command on a node; its output."""
        return subprocess.run([*self._enter(self._init(node)), *command], capture_output=True, text=True).stdout

    def job(self, ident: str) -> dict[str, str]:
        """What Slurm knows of one job, also after its end: {"JobState": "RUNNING", "Restarts": "0", ...}."""
        text = self.run("scontrol", "--oneliner", "show", "job", ident).splitlines()[-1]
        return dict(re.findall(r"(\S+?)=(.*?)(?= [A-Z][A-Za-z/:]*=|$)", text))

    def wait(self, ident: str, *states: str, seconds: float = 240) -> dict[str, str]:
        """Until the job is in one of `states`; by default until it has ended for good.

        Raises:
            TimeoutError: with what Slurm knows of the job.
        """
        states = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        end = time.monotonic() + seconds
        while (job := self.job(ident))["JobState"] not in states:
            if time.monotonic() > end:
                raise TimeoutError(f"job {ident} is not {' or '.join(states)} after {seconds} s: {job}")
            time.sleep(0.1)
        return job

    def tidy(self) -> None:
        """No jobs, all nodes up and idle: as after `up`."""
        self.run("scancel", "--user=root", check=False)
        for node in self.nodes:
            self.plug(node) if self.has_power(node) else self.power_on(node)
        end = time.monotonic() + 240
        while not self.idle():
            if time.monotonic() > end:
                raise TimeoutError(f"the nodes are not idle: {self.run('sinfo')}\n{self.run('squeue')}")
            time.sleep(0.1)

    # -------------------------------------------------------------------- what can happen to a node

    def power_off(self, node: str) -> None:
        os.kill(self._init(node), signal.SIGKILL)

    def power_on(self, node: str) -> None:
        subprocess.run(
            [*self._enter(self.login), sys.executable, __file__, "boot", str(self.folder), node],
            check=True,
            env=os.environ | self.environment,
        )

    def has_power(self, node: str) -> bool:
        try:
            return bool(self._init(node))
        except RuntimeError:
            return False

    def unplug(self, node: str) -> None:
        self.run("ip", "link", "set", f"to-{node}", "down")

    def plug(self, node: str) -> None:
        self.run("ip", "link", "set", f"to-{node}", "up")

    def _init(self, node: str) -> int:
        """The pid, as this machine sees it, of a node's first process."""
        inner = (self.folder / f"{node}.pid").read_text()
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                ids = re.search(r"^NSpid:(.*)", status.read_text(), re.MULTILINE)
                pids = ids[1].split() if ids else []
                if pids[1:] == [inner, "1"] and f"{self.folder}\0" in (status.parent / "cmdline").read_text():
                    return int(pids[0])
        raise RuntimeError(f"{node} has no power")

    def idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T", check=False).split()
        return states == ["idle"] * len(self.nodes)

    def down(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.login, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        shutil.rmtree(self.folder, ignore_errors=True)


def up(count: int) -> Cluster:
    """Start a cluster of `count` nodes, node1, node2, ...; a few seconds.

    Raises:
        RuntimeError: with the daemons' logs, when it does not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: a socket's path has at most 108 bytes
    nodes = [f"node{i + 1}" for i in range(count)]
    _configure(folder, nodes)
    space = "unshare --net --uts --ipc --mount --pid --fork --kill-child=KILL --".split()
    with open(folder / "login.log", "ab") as log:
        outer = subprocess.Popen(
            [*space, sys.executable, __file__, "login", str(folder), *nodes],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"},
        )
    cluster = Cluster(folder, nodes, _child(outer.pid))
    for _ in range(300):
        if outer.poll() is not None:
            break
        if cluster.idle():
            return cluster
        time.sleep(0.1)
    logs = "\n".join(f"{p.name}:\n{p.read_text()[-1500:]}" for p in sorted(folder.glob("*.log")))
    cluster.down()
    raise RuntimeError(f"the Slurm cluster did not come up\n{logs}")


def _configure(folder: Path, nodes: list[str]) -> None:
    version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", version)
    assert found, version
    # slurmd looks for cgroups unless a plug-in is named, even where it would not use them
    plugin = "disabled" if (int(found[1]), int(found[2])) >= (23, 11) else "cgroup/v1"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    for part in ("spool", "state", "gpu"):
        (folder / part).mkdir()
    for i in range(GPUS):
        (folder / f"gpu/{i}").touch()
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu/[0-{GPUS - 1}]\n")
    hosts = [("login", 254), *((n, i + 1) for i, n in enumerate(nodes))]
    # torch looks up an IPv4 peer in its IPv6 form
    lines = ["127.0.0.1 localhost"] + [f"{x}{NET}.{i} {n}" for n, i in hosts for x in ("", "::ffff:")]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    addresses = ",".join(f"{NET}.{i + 1}" for i in range(len(nodes)))
    (folder / "slurm.conf").write_text(f"""\
ClusterName=test
SlurmctldHost=login({NET}.254)
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
# A dead node is noticed within seconds, a requeued job starts within seconds, ended jobs can be asked about.
SlurmdTimeout=6
MessageTimeout=5
TCPTimeout=1
BatchStartTimeout=10
KillWait=5
CompleteWait=0
ReturnToService=2
MinJobAge=7200
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
FirstJobId={int(time.time()) % 1_000_000 + 1000}
GresTypes=gpu
NodeName={",".join(nodes)} NodeAddr={addresses} CPUs={CPUS} RealMemory=100000 Gres=gpu:{GPUS} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=spot Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
""")


# ------------------------------------------------------------------- first processes, inside their namespaces


def _login(folder: Path, nodes: list[str]) -> None:
    sh("hostname login && mount -t proc proc /proc && mount -t sysfs -o ro sysfs /sys || true")
    sh(f"mount --bind {folder}/hosts /etc/hosts")
    for i in range(GPUS):  # a GPU is a device file, whose number is the GPU's
        sh(f"mount --bind /dev/null {folder}/gpu/{i}")
    sh("ip link set lo up && ip link add br0 type bridge && ip link set br0 up")
    sh(f"ip addr add {NET}.254/24 dev br0")
    sh(
        f"munged --key-file={folder}/munge.key --socket={folder}/munge --log-file={folder}/munge.log "
        f"--pid-file={folder}/munge.pid --seed-file={folder}/munge.seed --force"
    )
    sh("slurmctld")
    for node in nodes:
        _boot(folder, node)
    _reap()


def _boot(folder: Path, node: str) -> None:
    """Power on: runs on the login host, into whose bridge the node's cable goes."""
    space = "unshare --net --uts --ipc --mount --pid --fork --kill-child=KILL --".split()
    with open(folder / f"{node}.log", "ab") as log:
        outer = subprocess.Popen(
            [*space, sys.executable, __file__, "node", str(folder), node],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    pid = _child(outer.pid)
    (folder / f"{node}.pid").write_text(str(pid))
    subprocess.run(["ip", "link", "del", f"to-{node}"], capture_output=True)  # that of a node that lost power
    sh(f"ip link add to-{node} master br0 type veth peer name eth0 netns {pid} && ip link set to-{node} up")


def _node(folder: Path, node: str) -> None:
    sh(f"hostname {node} && mount -t proc proc /proc && mount -t sysfs -o ro sysfs /sys || true")
    for own in ("/dev/shm", "/var/tmp"):
        sh(f"mkdir -p {own} && mount -t tmpfs -o mode=1777 tmpfs {own}")
    while "eth0" not in (name for _, name in socket.if_nameindex()):
        time.sleep(0.01)
    address = f"{NET}.{node.removeprefix('node')}"
    sh(f"ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up")
    (folder / "spool" / node).mkdir(exist_ok=True)
    sh(f"slurmd -N {node}")
    _reap()


def _reap() -> None:
    """What a first process is for."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(1)


def sh(line: str) -> None:
    subprocess.run(["sh", "-c", line], check=True)


def _child(pid: int) -> int:
    """The process that `unshare` started, once it is in its own namespaces."""
    for _ in range(500):
        with contextlib.suppress(OSError, IndexError):
            child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
            if _namespace(child, "net") != _namespace("self", "net"):
                return int(child)
        time.sleep(0.01)
    raise RuntimeError("a host of the Slurm cluster did not start")


def _namespace(pid: str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


@contextlib.contextmanager
def cluster(count: int) -> Iterator[Cluster]:
    """A cluster while the block lasts; also gone when this process is killed."""
    found = up(count)
    guard = subprocess.Popen(  # outlives a SIGKILL of this process, and then takes the cluster down
        [sys.executable, __file__, "guard", str(os.getpid()), str(found.login), str(found.folder)],
        start_new_session=True,
    )
    try:
        yield found
    finally:
        found.down()
        guard.kill()
        guard.wait()


def _guard(parent: int, login: int, folder: Path) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGUSR1)  # told when the parent has died
    signal.signal(signal.SIGUSR1, lambda *_: None)
    while os.getppid() == parent:
        time.sleep(1)
    Cluster(folder, [], login).down()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["login", folder, *nodes]:
            _login(Path(folder), nodes)
        case ["node", folder, node]:
            _node(Path(folder), node)
        case ["boot", folder, node]:
            _boot(Path(folder), node)
        case ["guard", parent, login, folder]:
            _guard(int(parent), int(login), Path(folder))
        case [count] if count.isdigit():
            if reason := cannot():
                sys.exit(reason)
            with cluster(int(count)) as c:
                shell = [*c._enter(c.login), "env", "-C", os.getcwd(), os.environ.get("SHELL", "bash")]
                subprocess.run(shell, env=os.environ | c.environment)
        case _:
            sys.exit(__doc__)
