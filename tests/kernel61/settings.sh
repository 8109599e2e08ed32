#!/usr/bin/env bash
# The host settings in the guest of boot.sh, whose kernel has what a development machine may lack: fq, BBR as a module, huge pages. All are
# applied to it and to a device, check.sh has to be content, and after revert.sh everything has to read as before.
set -u

say() { echo "kernel61: $*"; }

tuning() { "/tuning/$1.sh" --device d0 "$2" --link 100g; }

# What the settings may touch, as it reads; not what counts by itself.
everything() {
    local file text
    find /proc/sys/net /proc/sys/fs /sys/kernel/mm/transparent_hugepage /sys/class/net/d0/queues/ /sys/devices/system/cpu -type f | sort |
        grep -v -e /cpuidle/ -e /cache/ -e /power/runtime -e _time$ -e /fs/.*-nr$ -e /fs/.*-state$ -e /fs/file-nr |
        while read -r file; do
            IFS= read -r -d '' text 2>/dev/null <"$file"
            echo "$file $text"
        done 2>/dev/null
    tc qdisc show
    ip -d link show d0
}

for module in dummy sch_fq tcp_bbr; do insmod "/modules/$module.ko"; done
ip link add dev d0 type dummy
ip link set d0 up
everything >/tmp/before
tuning apply all || say "tuning FAILED: apply ended with status $?"
tuning check all >/tmp/check || { say "tuning FAILED: check is not content"; cat /tmp/check; }
tc qdisc show dev d0 | grep '^qdisc fq ' || say "tuning FAILED: the device has no fq"
grep -H bbr /proc/sys/net/ipv4/tcp_congestion_control || say "tuning FAILED: there is no BBR"
/tuning/revert.sh || say "tuning FAILED: revert ended with status $?"
everything >/tmp/after
if diff /tmp/before /tmp/after; then say "tuning ok, $(grep -c . /tmp/before) lines as they were"; else say "tuning FAILED: not as it was"; fi
