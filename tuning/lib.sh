# shellcheck shell=bash disable=SC2034 # what is unused here is used by the three
# What check.sh, apply.sh and revert.sh share: their flags, the settings as data, how a value is read, judged and written, and the record of
# what was there before.
#
# A file of settings/ is a section, and a block of it a setting:
#
#     [name]              for kind sysctl its name
#     kind     sysctl | file | chosen | irq | qdisc | link | limit | process
#     path     for file and chosen: DEV stands for each device, CORE for each core, and patterns are filled in
#     attribute  for link
#     only     one-per-core: only where there are as many targets as cores
#     scope    namespace: it belongs to the network namespace in which it is set; host (default): to the machine
#     rule     exact (default, `a|b` lets b pass and writes a) | at-least | at-most | includes | mask
#     want     what it should be; want@25g from 25 Gbit/s on; `*` keeps a field, `-` is no wish; words: core, core-mask, share/N, ram/N, cores*N
#     needs    what the kernel must be built with
#     hand     how to set it by hand: apply.sh leaves it alone
#     why, without (the symptom), gain (measured), source
#
# What always holds: a value is in the record before it is changed for the first time, and leaves it only when it is back.

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
SPEEDS=(1g 10g 25g 100g)
LIMITS_FOLDER=/etc/security/limits.d

LINK=10g DRY_RUN='' ALL_WORDS='' ROOT='' STATE='' SETTINGS="$HERE/settings"
SECTIONS=() DEVICES=() CORES=()
# The setting that is being looked at, and its section.
declare -A S=()
SECTION=''
# What read_target found, and why a target cannot be read or written.
FOUND='' REASON='' SET_BY_SOMEBODY=''

# --- flags

parse() {
    local section
    while [ $# -gt 0 ]; do
        case "$1" in
            --link) needs_value "$@"; LINK="$2"; shift ;;
            --device) needs_value "$@"; DEVICES+=("$2"); shift ;;
            --cores)
                needs_value "$@"
                [[ "$2" =~ ^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$ ]] || wrong_use "--cores: expected numbers as in 0-3,6, got $2"
                mapfile -t CORES < <(expand_list "$2")
                shift
                ;;
            --root) needs_value "$@"; ROOT="${2%/}"; shift ;;
            --state) needs_value "$@"; STATE="$2"; shift ;;
            --settings) needs_value "$@"; SETTINGS="$2"; shift ;;
            --dry-run) DRY_RUN=yes ;;
            --why) ALL_WORDS=yes ;;
            -h | --help) usage; exit 0 ;;
            -*) wrong_use "there is no flag $1" ;;
            *) SECTIONS+=("$1") ;;
        esac
        shift
    done
    case " ${SPEEDS[*]} " in *" $LINK "*) ;; *) wrong_use "--link is one of ${SPEEDS[*]}, got $LINK" ;; esac
    PATH="$PATH:/usr/sbin:/sbin"
    STATE="${STATE:-$ROOT/var/lib/zhwkprox-tuning}"
    [ ${#CORES[@]} -gt 0 ] || mapfile -t CORES < <(expand_list "$(cat "$ROOT/sys/devices/system/cpu/online" 2>/dev/null || echo 0)")
    [ ${#DEVICES[@]} -gt 0 ] || mapfile -t DEVICES < <(network_cards)
    for section in "${SECTIONS[@]}"; do
        [ "$section" = all ] || [ -e "$SETTINGS/$section.conf" ] || wrong_use "there is no section $section, there are: $(sections | xargs)"
    done
    case " ${SECTIONS[*]} " in *" all "*) mapfile -t SECTIONS < <(sections) ;; esac
}

needs_value() { [ $# -ge 2 ] || wrong_use "$1 needs a value"; }

wrong_use() {
    echo "${0##*/}: $*" >&2
    exit 2
}

sections() {
    local file
    for file in "$SETTINGS"/*.conf; do basename "$file" .conf; done
}

# 0-2,5 as lines.
expand_list() {
    local part
    for part in ${1//,/ }; do
        seq "${part%-*}" "${part#*-}"
    done
}

# Devices with a card behind them, virtual ones of a hypervisor included; neither bridges nor the ends of containers.
network_cards() {
    local device
    for device in "$ROOT"/sys/class/net/*/device; do
        [ -e "$device" ] && basename "${device%/device}"
    done
    return 0
}

# Changing what is really there takes root; two at once would take each other's values for what was there before.
begin_changes() {
    [ -n "$ROOT" ] || [ "$(id -u)" -eq 0 ] || wrong_use "only root can do this: sudo $0 (check.sh and apply.sh --dry-run change nothing)"
    mkdir -p "$STATE" || wrong_use "cannot make $STATE, where the record of what was there is kept"
    command -v flock >/dev/null || wrong_use "there is no flock: apt-get install util-linux"
    exec 9>"$STATE/lock"
    flock -n 9 || wrong_use "another one is at work here ($STATE/lock)"
    drop_stale_record
}

# --- settings

# Calls a function for each setting of the chosen sections, with S and SECTION filled.
each_setting() {
    local line key=''
    for SECTION in "${SECTIONS[@]}"; do
        S=()
        [ -r "$SETTINGS/$SECTION.conf" ] || wrong_use "cannot read $SETTINGS/$SECTION.conf"
        while IFS= read -r line; do
            case "$line" in
                '#'* | '') ;;
                '['*) finish_setting "$1"; S[name]="${line:1:-1}" ;;
                ' '*) S[$key]+=" ${line#"${line%%[! ]*}"}" ;;
                *) key="${line%% *}"; line="${line#"$key"}"; S[$key]="${line#"${line%%[! ]*}"}" ;;
            esac
        done <"$SETTINGS/$SECTION.conf"
        finish_setting "$1"
    done
}

finish_setting() {
    if [ -n "${S[name]-}" ]; then "$1"; fi
    S=()
}

# What the setting should be at this speed; nothing if there is no wish.
wanted() {
    local speed want="${S[want]--}"
    for speed in "${SPEEDS[@]}"; do
        want="${S[want@$speed]-$want}"
        [ "$speed" != "$LINK" ] || break
    done
    [ "$want" = - ] || echo "$want"
}

# Why the setting cannot exist on this kernel; status 1 if it can, as far as the kernel tells.
lacks() {
    local configuration
    [ -n "${S[needs]-}" ] && [ -z "$ROOT" ] || return 1
    configuration="$( (zcat /proc/config.gz || cat "/boot/config-$(uname -r)") 2>/dev/null)" || return 1
    ! grep -q "^${S[needs]}=" <<<"$configuration" && echo "this kernel has no ${S[needs]}"
}

# The targets of the setting with what each should be: lines of kind|target|want. For files a path, otherwise a device or the name; sysctls
# and interrupts are files, once it is known which.
targets() {
    local want device path at=0 count paths=()
    want="$(wanted)"
    [ -n "$want" ] || return 0
    case "${S[kind]}" in
        sysctl) resolve "/proc/sys/${S[name]//.//}" "$want" 0 1 ;;
        limit | process) resolve "${S[name]}" "$want" 0 1 ;;
        qdisc | link) for device in "${DEVICES[@]}"; do resolve "$device" "$want" 0 1; done ;;
        irq) for device in "${DEVICES[@]}"; do irqs_of "$device" "$want"; done ;;
        file | chosen)
            for device in "${DEVICES[@]:-none}"; do
                mapfile -t paths < <(paths_of "${S[path]//DEV/$device}")
                count=${#paths[@]}
                if [ "${S[only]-}" = one-per-core ] && [ "$count" -ne ${#CORES[@]} ]; then count=0; fi
                at=0
                for path in "${paths[@]:0:$count}"; do
                    resolve "$path" "$want" "$at" "$count"
                    at=$((at + 1))
                done
                [[ "${S[path]}" == *DEV* ]] || break
            done
            ;;
    esac
}

# The files that a path with CORE and patterns stands for, as they are numbered.
paths_of() {
    local core found pattern patterns=("$1")
    if [[ "$1" == *CORE* ]]; then
        patterns=()
        for core in "${CORES[@]}"; do patterns+=("${1//CORE/$core}"); done
    fi
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2086 # the pattern is to be filled in
        for found in "$ROOT"$pattern; do [ -e "$found" ] && echo "${found#"$ROOT"}"; done | sort -V
    done
}

# A device's interrupts that belong to a queue (their names end in its number), to one core each.
irqs_of() {
    local folder="$ROOT/sys/class/net/$1/device" name number at=0
    for folder in "$folder/msi_irqs" "$(readlink -f "$folder")/../msi_irqs"; do
        [ -d "$folder" ] || continue
        for number in "$folder"/*; do
            number="${number##*/}"
            name="$(awk -v irq="$number:" '$1 == irq { print $NF }' "$ROOT/proc/interrupts")"
            name="${name%%@*}"
            case "$name" in *async* | *ctrl* | *config* | *mgmnt* | *pages* | *fdir*) continue ;; esac
            if [ "$name" = "$1" ] || ! [[ "$name" =~ ([0-9]+)$ ]]; then continue; fi
            at="${BASH_REMATCH[1]}"
            resolve "/proc/irq/$number/smp_affinity_list" "$2" "$at" 1
        done
        return 0
    done
}

# One line of targets, with the words of the want turned into numbers: the at-th of count.
resolve() {
    local word words kib values=() core=${CORES[$(($3 % ${#CORES[@]}))]}
    read -ra words <<<"$2"
    for word in "${words[@]}"; do
        case "$word" in
            core) word="$core" ;;
            core-mask) word="$(mask_of "$core")" ;;
            share/*) word=$((${word#*/} / $4)) ;;
            ram/*)
                kib="$(awk '$1 == "MemTotal:" { print $2 }' "$ROOT/proc/meminfo" 2>/dev/null)"
                word=$((${kib:-0} / 4 / ${word#*/}))
                ;;
            cores\**) word=$((${#CORES[@]} * ${word#*\*})) ;;
        esac
        values+=("$word")
    done
    case "${S[kind]}" in
        sysctl | irq) word='file' ;;
        link) word="link:${S[attribute]}" ;;
        *) word="${S[kind]}" ;;
    esac
    echo "$word|$1|${values[*]}"
}

# A set of one core as the kernel writes it: groups of 32 bits.
mask_of() {
    local low=$(($1 % 32)) groups=$(($1 / 32)) mask
    mask="$(printf '%x' $((1 << low)))"
    while [ "$groups" -gt 0 ]; do mask+=",00000000"; groups=$((groups - 1)); done
    echo "$mask"
}

# --- what is there

# Reads a target into FOUND: read_target KIND TARGET. Status 1, with REASON, if there is nothing to read.
read_target() {
    FOUND='' REASON="no $2" SET_BY_SOMEBODY=''
    case "$1" in
        file) [ -e "$ROOT$2" ] && { FOUND="$(<"$ROOT$2")"; } 2>/dev/null ;;
        chosen) [ -e "$ROOT$2" ] && FOUND="$(sed 's/.*\[\(.*\)\].*/\1/' "$ROOT$2")" ;;
        limit) read_limit "$2" ;;
        limits-file) if [ -e "$ROOT$2" ]; then FOUND="content $(base64 -w 0 "$ROOT$2")"; else FOUND=absent; fi ;;
        process) if running "$2"; then FOUND=running; else FOUND=absent; fi ;;
        qdisc) [ -z "$ROOT" ] && read_qdisc "$2" ;;
        link:*) [ -z "$ROOT" ] && read_link "$2" "${1#link:}" ;;
    esac
}

# The hard limit of this shell, or what the next login will get.
read_limit() {
    local name='Max open files'
    if [ "$1" = memlock ]; then name='Max locked memory'; fi
    [ -e "$ROOT/proc/self/limits" ] || return 1
    FOUND="$(sed -n "s/^$name *[^ ]* *\([^ ]*\) .*/\1/p" "$ROOT/proc/self/limits")"
    if [ "$1" = memlock ] && [ "$FOUND" != unlimited ]; then FOUND=$((FOUND / 1024)); fi
    if [ -e "$ROOT$(limits_file "$1")" ]; then FOUND="$(awk '$1 == "*" { print $4 }' "$ROOT$(limits_file "$1")")"; fi
}

limits_file() { echo "$LIMITS_FOLDER/zhwkprox-$1.conf"; }

running() {
    local comm
    for comm in "$ROOT"/proc/[0-9]*/comm; do
        [ "$(cat "$comm" 2>/dev/null)" != "$1" ] || return 0
    done
    return 1
}

# The kind at the root, or mq and the kinds of its queues; and SET_BY_SOMEBODY, for the kernel's own have the handle 0.
read_qdisc() {
    local shown
    REASON="no device $1, or no tc (apt-get install iproute2)"
    shown="$(tc qdisc show dev "$1" 2>/dev/null)" || return 1
    if [ -z "$shown" ]; then shown="qdisc none 0: root"; fi
    FOUND="$(awk '
        $4 == "root" { root = $2 }
        $4 == "parent" && $5 !~ /^ffff/ && !seen[$2]++ { queues = queues " " $2 }
        END { print root queues }' <<<"$shown")"
    SET_BY_SOMEBODY="$(awk '($4 == "root" || $4 == "parent" && $5 !~ /^ffff/) && $3 != "0:" { print "yes"; exit }' <<<"$shown")"
}

# What a card cannot send in one piece is no setting of it.
read_link() {
    local shown most want
    REASON="$2 is not shown for $1 by this kernel or this ip"
    shown="$(ip -d link show dev "$1" 2>/dev/null)"
    FOUND="$(sed -n "s/.* $2 \([0-9]*\).*/\1/p" <<<"$shown")"
    [ -n "$FOUND" ] || return 1
    most="$(sed -n 's/.* tso_max_size \([0-9]*\).*/\1/p' <<<"$shown")"
    want="$(wanted)"
    if [[ "$2" == gso* ]] && [ "${most:-0}" -gt 0 ] && [ "${want:-0}" -gt "$most" ]; then
        REASON="the card takes $most at most"
        return 1
    fi
}

# A target as it is shown.
label() {
    case "$1" in
        link:*) echo "$2 ${1#link:}" ;;
        qdisc) echo "$2 qdisc" ;;
        file) local name="${2#/proc/sys/}"; if [ "$name" = "$2" ]; then echo "$2"; else echo "${name//\//.}"; fi ;;
        *) echo "$2" ;;
    esac
}

# --- judging

# Whether what was found is as wanted: satisfied RULE FOUND WANT.
satisfied() {
    local found want i
    read -ra found <<<"$2"
    read -ra want <<<"$3"
    case "$1" in
        exact) [[ "|$3|" == *"|${found[*]}|"* ]] ;;
        mask) [ "$(bare_mask "$2")" = "$(bare_mask "$3")" ] ;;
        includes)
            found=("$(expand_list "$2")")
            for i in ${3//,/ }; do grep -qx "$i" <<<"${found[*]}" || return 1; done
            ;;
        at-least | at-most)
            for i in "${!want[@]}"; do
                case "${want[$i]}/${found[$i]-}" in
                    '*/'*) ;;
                    */unlimited) [ "$1" = at-least ] || return 1 ;;
                    */*[!0-9]* | */) return 1 ;;
                    *) if [ "$1" = at-least ]; then ((found[i] >= want[i])); else ((found[i] <= want[i])); fi || return 1 ;;
                esac
            done
            ;;
        *) wrong_use "[${S[name]}] of $SETTINGS/$SECTION.conf has the rule $1, which does not exist" ;;
    esac
}

# What is written so that it becomes as wanted, keeping what may stay: value_for RULE FOUND WANT.
value_for() {
    local found want i
    read -ra found <<<"$2"
    read -ra want <<<"$3"
    case "$1" in
        exact) echo "${3%%|*}" ;;
        includes) if [ -n "$2" ]; then echo "$2,$3"; else echo "$3"; fi ;;
        mask) echo "$3" ;;
        *)
            for i in "${!want[@]}"; do
                if [ "${want[$i]}" = '*' ] || satisfied "$1" "${found[$i]-}" "${want[$i]}"; then want[i]="${found[$i]}"; fi
            done
            echo "${want[*]}"
            ;;
    esac
}

bare_mask() {
    local mask="${1//,/}"
    mask="${mask#"${mask%%[!0]*}"}"
    echo "${mask:-0}"
}

# --- writing

# Writes a value: write_target KIND TARGET VALUE. Status 1, with REASON, if the kernel does not take it.
write_target() {
    case "$1" in
        file | chosen) REASON="$({ printf '%s\n' "$3" >"$ROOT$2"; } 2>&1)" || { REASON="${REASON##*: }"; return 1; } ;;
        limits-file) write_limits_file "$2" "$3" ;;
        qdisc) write_qdisc "$2" "$3" ;;
        link:*) REASON="$(ip link set dev "$2" "${1#link:}" "$3" 2>&1)" ;;
    esac
}

# `absent`, `content BASE64` or `limit NAME VALUE`.
write_limits_file() {
    local path="$ROOT$1" words
    read -ra words <<<"$2"
    case "${words[0]}" in
        absent) REASON="$(rm -f "$path" 2>&1)" ;;
        content) REASON="$({ base64 -d <<<"${words[1]}" >"$path"; } 2>&1)" ;;
        limit)
            REASON="$({ mkdir -p "${path%/*}" && {
                echo "# By tuning/apply.sh; tuning/revert.sh takes it away. For logins only: units have LimitNOFILE= and LimitMEMLOCK=."
                printf '%s hard %s %s\n' root "${words[1]}" "${words[2]}" '*' "${words[1]}" "${words[2]}"
            } >"$path"; } 2>&1)"
            ;;
    esac
}

# `default` gives the device back to the kernel. A device with a qdisc for each queue keeps that, with the new kind in each.
write_qdisc() {
    local class
    if [ "$2" = default ]; then
        REASON="$(tc qdisc del dev "$1" root 2>&1)"
    elif grep -q '^qdisc mq .* root' <<<"$(tc qdisc show dev "$1")"; then
        REASON="$(tc qdisc replace dev "$1" root handle 1: mq 2>&1)" || return 1
        for class in $(tc class show dev "$1" | awk '$2 == "mq" { print $3 }'); do
            if ! REASON="$(tc qdisc replace dev "$1" parent "$class" "$2" 2>&1)"; then
                tc qdisc del dev "$1" root 2>/dev/null
                return 1
            fi
        done
    else
        REASON="$(tc qdisc replace dev "$1" root "$2" 2>&1)"
    fi
}

# --- the record: a line boot|ID, then lines of scope|kind|target|what was there

record() { echo "$STATE/record"; }
boot_id() { cat "$ROOT/proc/sys/kernel/random/boot_id" 2>/dev/null || echo unknown; }
# The namespace that a namespace's setting belongs to.
network() { if [ -n "$ROOT" ]; then echo net:root; else stat -L -c 'net:%i' /proc/self/ns/net; fi; }

# After a boot the kernel's settings are what the boot made them, so what was there before it is no more; files are still as they were left.
drop_stale_record() {
    [ -e "$(record)" ] || return 0
    if grep -qxF "boot|$(boot_id)" "$(record)"; then return 0; fi
    echo "the record is from before the last boot, which has undone all but files by itself"
    { echo "boot|$(boot_id)"; grep '|limits-file|' "$(record)"; } >"$(record).new"
    mv "$(record).new" "$(record)"
}

# Notes what is there unless that is noted already: remember SCOPE KIND TARGET VALUE.
remember() {
    [ -e "$(record)" ] || echo "boot|$(boot_id)" >"$(record)" || return 1
    # No pipe: with pipefail a grep that stops reading early could make it fail.
    if ! grep -qxF "$1|$2|$3" <<<"$(cut -d '|' -f 1-3 "$(record)")"; then echo "$1|$2|$3|$4" >>"$(record)"; fi
}
