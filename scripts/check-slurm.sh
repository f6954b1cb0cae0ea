#!/bin/sh
# A grid by a real Slurm: one machine with slurm-wlm from Debian's packages, its daemons run for this alone and stopped at the end.
#
#   scripts/check-slurm.sh
#
# Submits a small grid, kills a task in the middle, submits again, and compares the weights with those of a grid that was run here.
# Needs: Debian, root (it installs slurm-wlm and munge), a built target/release/trainer.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "this script installs packages and runs Slurm's daemons: root is needed" >&2; exit 1; }
command -v slurmctld > /dev/null && command -v munged > /dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null
}
program=$PWD/target/release/trainer
work=$(mktemp -d)
host=$(hostname -s)
stop() {
    for daemon in slurmd slurmctld munged; do
        [ ! -f "$work/$daemon.pid" ] || kill "$(cat "$work/$daemon.pid")" 2> /dev/null || true
    done
    rm -rf "$work"
}
trap stop EXIT
mkdir -p /etc/slurm "$work/state" "$work/spool"
cat > "$work/slurm.conf" << CONF
ClusterName=one
SlurmctldHost=$host
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ReturnToService=2
MpiDefault=none
NodeName=$host CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
export SLURM_CONF=$work/slurm.conf
mkdir -p /run/munge
[ -f /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 2> /dev/null; }
chown -R munge: /run/munge /etc/munge /var/lib/munge /var/log/munge
chmod 400 /etc/munge/munge.key
chmod 755 "$work"
su -s /bin/sh munge -c "munged --force --pid-file=/run/munge/munged.pid"
cp /run/munge/munged.pid "$work/munged.pid"
slurmctld
slurmd
for _ in $(seq 60); do
    sinfo -h -o %t 2> /dev/null | grep -q idle && break
    sleep 1
done
sinfo

cat > "$work/grid.toml" << GRID
profile = "smoke"
[config.data]
name = "cifar10-mini"
views = 2
limit = 256
[config.student]
arch = "resnet8"
[config.teacher]
checkpoint = "$PWD/checkpoints/wrn-16-2-cifar10.safetensors"
cache = "$work/cache"
[config.train]
epochs = 30
save_every = 1
[[block]]
name = "a"
seeds = "0..2"
[block.axes.row]
ce = { loss = { weights = { ce = 1.0 } } }
kd = { loss = { weights = { ce = 0.1, kd = 0.9, explanation = 0.01 }, interpreter = "shap_cam" } }
GRID
submit() {
    "$program" ablate "$work/grid.toml" --out "$work/cluster" --launcher slurm --threads 1
}
finished() {
    find "$work/cluster" -name report.json | wc -l
}
# Until nothing is left of what was submitted.
wait_for_all() {
    while squeue -h | grep -q .; do sleep 1; done
}
submit
# One task is killed as a node that fails kills it, when it has a state to go on from.
for _ in $(seq 600); do
    [ -z "$(find "$work/cluster" -name state.safetensors | head -1)" ] || break
    sleep 0.2
done
pkill -9 -f -- "--run a/" || true
wait_for_all
echo "after a kill: $(finished) of 4 runs are done"
[ "$(finished)" -lt 4 ] || { echo "nothing was killed in time" >&2; exit 1; }
submit
wait_for_all
[ "$(finished)" = 4 ] || { cat "$work"/cluster/slurm/*.out >&2; exit 1; }
"$program" ablate "$work/grid.toml" --out "$work/here" --quiet
(cd "$work/here" && find . -name last.safetensors -exec sha256sum {} +) | sort > "$work/expected"
(cd "$work/cluster" && find . -name last.safetensors -exec sha256sum {} +) | sort > "$work/found"
cmp "$work/expected" "$work/found"
cat "$work"/cluster/slurm/*table*.out
echo "the same weights as here, to the bit"
