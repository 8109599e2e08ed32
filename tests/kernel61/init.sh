#!/bin/busybox sh
# shellcheck shell=dash
# The first process of the guest that boot.sh starts: does the work, says each verdict in a line that begins with "kernel61: ", and ends the
# guest. A step that fails is told with what was found, and the next one runs.
/bin/busybox --install -s /bin
# The real ones, which busybox has just not replaced, come first.
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
ln -s /proc/self/fd /dev/fd
mount -t tmpfs none /tmp
ip link set lo up
ulimit -n 20000

say() { echo "kernel61: $*"; }
now() { cut -d ' ' -f 1 /proc/uptime; }

# Waits for a word in a file that a process beside us writes.
await() {
    local tries=0
    until grep -q "$1" "$2"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ]; then return 1; fi
        sleep 0.1
    done
}

# The firmware ends without a line's end.
echo
say "kernel $(uname -r)"

if zhwkprox doctor; then say "doctor ok"; else say "doctor FAILED"; fi

# Both roles in one process, and the page by the very line that it prints.
zhwkprox demo >/tmp/demo 2>/tmp/demo.err &
demo=$!
if await '^curl ' /tmp/demo; then
    line="$(grep -m 1 '^curl ' /tmp/demo)"
    say "$line"
    began=$(now)
    page="$($line --silent --show-error --max-time 60)"
    echo "$page"
    case "$page" in
        "It works."*) say "demo ok, from ${began} to $(now) s after the boot" ;;
        *) say "demo FAILED: not the page" ; cat /tmp/demo.err ;;
    esac
else
    say "demo FAILED: no curl line"
    cat /tmp/demo /tmp/demo.err
fi
kill -INT "$demo"
wait "$demo" || say "demo FAILED: ended with status $?"

# Two processes, a key file, 64 MiB from a web server on loopback.
dd if=/dev/urandom of=/www/file bs=1M count=64 2>/dev/null
httpd -h /www -p 127.0.0.1:8000
zhwkprox keygen --out /tmp/key
zhwkprox inter-server --listen 127.0.0.1:1992 --socks 127.0.0.1:1081 --key-file /tmp/key 2>/tmp/entry.err &
entry=$!
zhwkprox server --dial 127.0.0.1:1992 --key-file /tmp/key --allow 127.0.0.0/8 2>/tmp/exit.err &
exit=$!
tries=0
until curl -x socks5h://127.0.0.1:1081 --silent --max-time 60 --output /tmp/part --range 0-0 http://127.0.0.1:8000/file; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then break; fi
    sleep 0.1
done
began=$(now)
got="$(curl -x socks5h://127.0.0.1:1081 --silent --show-error --max-time 300 http://127.0.0.1:8000/file | sha256sum)"
ended=$(now)
wanted="$(sha256sum </www/file)"
if [ "$got" = "$wanted" ]; then
    say "file ok, 64 MiB, from $began to $ended s after the boot"
else
    say "file FAILED: got $got, expected $wanted"
    cat /tmp/entry.err /tmp/exit.err
fi
kill -TERM "$entry" "$exit"
wait "$entry" || say "file FAILED: the entry ended with status $?"
wait "$exit" || say "file FAILED: the exit ended with status $?"

bash /tuning/on-kernel61.sh
# And the units: systemd wants a root that is not the kernel's first.
mkdir /newroot
mount -t tmpfs none /newroot
cp -a /bin /etc /lib /lib64 /modules /root /tuning /usr /var /newroot/
mkdir /newroot/dev /newroot/proc /newroot/run /newroot/sys /newroot/tmp
kill "$(pidof httpd)"
umount -l /tmp /dev /sys /proc
exec switch_root /newroot /lib/systemd/systemd
