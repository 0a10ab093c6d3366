"""Where Slurm's packages are missing, its tests name them and install nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm import mini_cluster


def test_what_is_missing_is_named_with_its_packages(monkeypatch):
    monkeypatch.setattr(mini_cluster.shutil, "which", lambda name, path: None)
    told = mini_cluster.missing()
    assert "slurmctld" in told and "apt-get install slurm-wlm munge" in told
    monkeypatch.setattr(mini_cluster.sys, "stderr", sys.stdout)
    assert mini_cluster.main([]) == 77


def test_it_wants_to_be_root(monkeypatch):
    monkeypatch.setattr(mini_cluster.shutil, "which", lambda name, path: f"/usr/sbin/{name}")
    monkeypatch.setattr(mini_cluster.os, "geteuid", lambda: 1000)
    assert "root" in mini_cluster.missing()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_what_a_cluster_started_is_killed_even_if_its_start_fails(monkeypatch, tmp_path):
    started = []

    class Broken(mini_cluster.MiniCluster):
        def start(self) -> None:
            child = subprocess.Popen(["sleep", "60"], env=self.environment)
            started.append((child, self.folder))
            raise AssertionError("no idle nodes")

    monkeypatch.setattr(mini_cluster, "MiniCluster", Broken)
    with pytest.raises(AssertionError, match="no idle nodes"), mini_cluster.mini_cluster(1):
        pass
    ((child, folder),) = started
    assert child.wait(10) == -9 and not Path(folder).exists()
    assert os.getpid() not in mini_cluster.MiniCluster(tmp_path, 1).left()
