#!/usr/bin/env bash
# The units in the guest of boot.sh, under a systemd that has really booted: installed as tuning/README.md says, started, used, reloaded with
# another key, killed, stopped. It is a unit itself, runs once, and ends the guest.
set -u

say() { echo "kernel61: $*"; }
ROLES=(zhwkprox-inter-server zhwkprox-server)
FAILED=0

main() {
    install_all
    systemctl daemon-reload
    step "start" systemctl start "${ROLES[@]}"
    step "a page through the units" page
    for unit in "${ROLES[@]}"; do step "$unit has nothing that it does not need" confined "$unit"; done
    step "another key after reload" other_key
    step "a kill, and it is back" killed
    step "stop in order" stopped
    step "wrong configuration is not tried again" wrong
    step "a credential is a file that the relay takes" credential
    step "the host is set and put back" host
    if [ "$FAILED" -eq 0 ]; then say "units ok"; fi
    sync
    poweroff -f
}

step() {
    local what="$1"
    shift
    if "$@"; then
        say "units: $what"
    else
        FAILED=1
        say "units FAILED: $what"
        systemctl --no-pager --full status "${ROLES[@]}" | cat
        cat /run/zhwkprox-*.err
    fi
}

install_all() {
    local unit
    mkdir -p /usr/local/bin /usr/local/share/zhwkprox /etc/zhwkprox /etc/systemd/system
    mv /bin/zhwkprox /usr/local/bin/zhwkprox
    cp -r /tuning /usr/local/share/zhwkprox/tuning
    systemd-sysusers /tuning/systemd/sysusers.conf
    cp /tuning/systemd/zhwkprox-*.service /etc/systemd/system/
    for unit in "${ROLES[@]}"; do
        mkdir -p "/etc/systemd/system/$unit.service.d"
        # No journal here.
        printf '[Service]\nStandardOutput=null\nStandardError=append:/run/%s.err\n' "$unit" >"/etc/systemd/system/$unit.service.d/test.conf"
    done
    new_key
    printf '[server]\ndial = ["127.0.0.1:1992"]\nallow = ["127.0.0.0/8"]\nkey-file = "/etc/zhwkprox/relay.key"\n' >/etc/zhwkprox/server.toml
    printf '[inter-server]\nlisten = ["127.0.0.1:1992"]\nsocks = ["unix:/run/zhwkprox/socks", "127.0.0.1:1081"]\nkey-file = "%s"\n' \
        /etc/zhwkprox/relay.key >/etc/zhwkprox/inter-server.toml
    mkdir -p /www
    echo "a page" >/www/page
    httpd -h /www -p 127.0.0.1:8000
}

new_key() {
    rm -f /etc/zhwkprox/relay.key
    /usr/local/bin/zhwkprox keygen --out /etc/zhwkprox/relay.key 2>/dev/null
    chown zhwkprox: /etc/zhwkprox/relay.key
}

# The exit may still be dialling.
page() {
    local tries=0
    until [ "$(curl -x socks5h://127.0.0.1:1081 --silent --max-time 30 http://127.0.0.1:8000/page)" = "a page" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 150 ] || return 1
        sleep 0.2
    done
}

pid_of() { systemctl show --property MainPID --value "$1"; }

confined() {
    local status
    status="/proc/$(pid_of "$1")/status"
    grep -q '^Uid:.*[1-9]' "$status" && grep -q '^CapBnd:[[:space:]]*0*$' "$status" && grep -q '^NoNewPrivs:[[:space:]]*1' "$status" &&
        grep -q '^Seccomp:[[:space:]]*2' "$status" && grep -q '^Max open files *1048576 *1048576' "${status%status}limits"
}

other_key() {
    local unit
    new_key
    for unit in "${ROLES[@]}"; do systemctl reload "$unit"; done
    /usr/local/bin/zhwkprox check --dial 127.0.0.1:1992 --key-file /etc/zhwkprox/relay.key && page
}

killed() {
    local before
    before="$(pid_of zhwkprox-server)"
    kill -KILL "$before"
    page && [ "$(pid_of zhwkprox-server)" != "$before" ]
}

stopped() {
    local unit
    for unit in "${ROLES[@]}"; do
        systemctl stop "$unit" && [ "$(systemctl show --property Result --value "$unit")" = success ] || return 1
    done
}

wrong() {
    echo 'no-such-flag = 1' >>/etc/zhwkprox/server.toml
    systemctl start zhwkprox-server
    # Twice the pause before a restart.
    sleep 10
    [ "$(systemctl show --property ActiveState --value zhwkprox-server)" = failed ] &&
        [ "$(systemctl show --property ExecMainStatus --value zhwkprox-server)" = 2 ]
}

credential() {
    cp /etc/zhwkprox/relay.key /root/relay.key
    chown root: /root/relay.key
    mkdir -p /run/systemd/system
    cat >/run/systemd/system/credential.service <<END
[Service]
Type=oneshot
User=zhwkprox
LoadCredential=relay.key:/root/relay.key
ExecStart=/usr/local/bin/zhwkprox server --check-config --dial 127.0.0.1:1992 --key-file \${CREDENTIALS_DIRECTORY}/relay.key
StandardOutput=tty
StandardError=tty
END
    systemctl daemon-reload
    systemctl start credential
}

host() {
    local name=/proc/sys/net/ipv4/tcp_slow_start_after_idle
    [ "$(<$name)" = 1 ] && systemctl start zhwkprox-tuning && [ "$(<$name)" = 0 ] && systemctl stop zhwkprox-tuning && [ "$(<$name)" = 1 ]
}

main
