#!/usr/bin/env bash
# Boots the oldest kernel that the relay promises to run on, Debian 12's 6.1, and lets the real binary work on it: `zhwkprox doctor`, the
# demo's page, a file through two processes, compared by its checksum, all host settings of tuning/, and its units under systemd. The last line is
# the verdict, and the exit status says it too.
#
#     tests/kernel61/boot.sh [BINARY]        without BINARY: cargo build, and that one
#
# Emulated by qemu, with a file system in memory that holds what is needed and nothing else; no network but loopback.
# Wants: apt-get install qemu-system-x86 busybox-static curl iproute2 systemd. The kernel's package is downloaded once and kept in target/kernel61.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=target/kernel61
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
root="$work/root"
# It takes two to ten minutes, and ten beside other work at a load of nine.
limit_s="${ZHWKPROX_BOOT_LIMIT_S:-1800}"

main() {
    local program binary="${1:-}"
    for program in qemu-system-x86_64 busybox curl tc dpkg-deb systemd-analyze; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null ||
            fail "$program is missing: apt-get install qemu-system-x86 busybox-static curl iproute2 systemd"
    done
    if [ -z "$binary" ]; then
        cargo build --locked --bin zhwkprox
        binary=target/debug/zhwkprox
    fi
    fetch_kernel
    fill_root "$binary"
    (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/initrd"
    boot | tee "$work/console"
    judge
}

fetch_kernel() {
    local package
    mkdir -p "$cache"
    if ! ls "$cache"/linux-image-6.1.*.deb >/dev/null 2>&1; then
        package="$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-6\.1\./ && !seen++ { print $2 }')"
        [ -n "$package" ] || fail "apt knows no linux-image-6.1 (Debian 12's): apt-get update, or put its .deb into $cache"
        (cd "$cache" && apt-get download "$package")
    fi
    for package in "$cache"/linux-image-6.1.*.deb; do :; done
    echo "kernel: ${package##*/}"
    dpkg-deb -x "$package" "$work/kernel"
}

# The file system: programs with their libraries, the modules that tuning uses, and what is run as the first process.
fill_root() {
    local module modules
    mkdir -p "$root"/{bin,dev,etc,proc,root,sys,tmp,var/lib,modules,usr/bin,www}
    install -m 755 "$1" "$root/bin/zhwkprox"
    install -m 755 "$(command -v busybox)" "$root/bin/busybox"
    local program
    for program in bash curl flock ip tc; do
        install -m 755 "$(PATH="$PATH:/usr/sbin:/sbin" command -v "$program")" "$root/bin/$program"
        libraries "$root/bin/$program"
    done
    libraries "$root/bin/zhwkprox"
    modules="$(echo "$work"/kernel/lib/modules/*/kernel)"
    for module in net/sched/sch_fq net/ipv4/tcp_bbr drivers/net/dummy; do
        cp "$modules/$module.ko" "$root/modules/"
    done
    cp -r tuning "$root/tuning"
    cp tests/kernel61/settings.sh "$root/tuning/on-kernel61.sh"
    ln -s /bin/busybox "$root/usr/bin/env"
    install -m 755 tests/kernel61/init.sh "$root/init"
    fill_systemd
    printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
    printf 'root:x:0:0:root:/:/bin/sh\n' >"$root/etc/passwd"
}

# As little of systemd as the units need, and the unit that tries them.
fill_systemd() {
    local program unit units="$root/lib/systemd/system"
    for program in /lib/systemd/systemd /bin/systemctl /bin/systemd-sysusers; do
        install -D -m 755 "$program" "$root$program"
        libraries "$program"
    done
    mkdir -p "$units"
    for unit in sysinit basic sockets timers paths slices network network-online shutdown; do
        cp "/lib/systemd/system/$unit.target" "$units/"
    done
    install -m 755 tests/kernel61/units.sh "$root/tuning/units-on-kernel61.sh"
    cat >"$units/kernel61.service" <<END
[Service]
Type=oneshot
Environment=PATH=/bin
ExecStart=/tuning/units-on-kernel61.sh
StandardOutput=tty
StandardError=tty
END
}

# Copies what a program is linked with to where it looks for it.
libraries() {
    local library
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        if [ ! -e "$root$library" ]; then install -D -m 755 "$library" "$root$library"; fi
    done
}

boot() {
    local kernel
    kernel="$(echo "$work"/kernel/boot/vmlinuz-6.1.*)"
    timeout --foreground "$limit_s" qemu-system-x86_64 -machine accel=tcg -cpu max -smp 2 -m 1024 -nographic -no-reboot -nodefaults \
        -serial stdio -kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 panic=-1 quiet systemd.unit=kernel61.service" </dev/null 2>&1 | tr -d '\r' ||
        fail "qemu ended with an error, or was not done after $limit_s s"
}

# What the guest has said is the judgement: each of these, and no complaint of the kernel's.
judge() {
    local wanted
    for wanted in "kernel 6.1." "doctor ok" "demo ok" "file ok" "tuning ok" "units ok"; do
        grep -q "^kernel61: $wanted" "$work/console" || fail "the guest did not say \`$wanted\`, see above"
    done
    if grep '^kernel61: .* FAILED' "$work/console"; then fail "a step has failed, see above"; fi
    if grep -E 'BUG:|Oops|WARNING: CPU|Kernel panic' "$work/console"; then fail "the kernel complained"; fi
    echo "boot.sh: all is well on $(sed -n 's/^kernel61: kernel //p' "$work/console"), ${SECONDS} s"
}

fail() {
    echo "boot.sh: FAILED: $*" >&2
    exit 1
}

main "$@"
