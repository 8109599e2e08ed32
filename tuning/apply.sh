#!/usr/bin/env bash
# Sets the chosen sections as wanted, and notes before each change what was there, so that revert.sh can put it back. Again is harmless.
# Exit status: 0 all of it is as wanted now (or cannot exist here), 1 something is not, each told, 2 wrong use, nothing touched.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<END
apply.sh SECTION … | all      sections: $(sections | xargs)
  --dry-run                   say what would be set, set nothing
  --link ${SPEEDS[*]}    the speed it is to be fit for (10g)
  --device NAME               a network device; again for another (all cards)
  --cores LIST                the cores of the relay, as in 0-3,6 (all)
  --state FOLDER              where the record is kept (/var/lib/zhwkprox-tuning)
  --settings FOLDER           other settings than those beside this script
  --root FOLDER               work on a tree of files instead of this machine
END
}

FAILED=0

main() {
    parse "$@"
    [ ${#SECTIONS[@]} -gt 0 ] || wrong_use "which sections? all, or some of: $(sections | xargs)"
    [ -n "$DRY_RUN" ] || begin_changes
    each_setting apply
    if [ "$FAILED" -gt 0 ]; then echo "$FAILED of the values could not be set, see above; the rest is as it says"; fi
    [ "$FAILED" -eq 0 ]
}

apply() {
    local kind target want reason
    if reason="$(lacks)"; then
        row 'not here' "${S[name]}" "$reason"
        return
    fi
    while IFS='|' read -r -u 8 kind target want; do
        apply_one "$kind" "$target" "$want"
    done 8< <(targets)
}

apply_one() {
    local kind="$1" target="$2" want="$3" before value shown
    shown="$(label "$kind" "$target")"
    if ! read_target "$kind" "$target"; then
        row 'not here' "$shown" "$REASON"
    elif satisfied "${S[rule]-exact}" "$FOUND" "$want"; then
        row ok "$shown" "$FOUND"
    elif [ -n "${S[hand]-}" ]; then
        row 'by hand' "$shown" "$FOUND; ${S[hand]}"
    elif [ -n "$SET_BY_SOMEBODY" ]; then
        failed "$shown" "left alone, for somebody has set $FOUND here, and that could not be put back as it is"
    else
        before="$FOUND"
        value="$(value_for "${S[rule]-exact}" "$before" "$want")"
        if [ -n "$DRY_RUN" ]; then
            row 'would set' "$shown" "$before -> $value"
        else
            change "$kind" "$target" "$before" "$value" "$want"
        fi
    fi
}

change() {
    local kind="$1" target="$2" before="$3" value="$4" want="$5" scope=host shown
    shown="$(label "$kind" "$target")"
    if [ "${S[scope]-host}" = namespace ]; then scope="$(network)"; fi
    case "$kind" in
        limit) change_limit "$target" "$value" && row set "$shown" "$before -> $value, from the next login on" ; return ;;
        qdisc) remember "$scope" "$kind" "$target" default ;;
        *) remember "$scope" "$kind" "$target" "$before" ;;
    esac || {
        failed "$shown" "left alone, for what is there could not be noted in $(record)"
        return
    }
    if ! write_target "$kind" "$target" "$value"; then
        failed "$shown" "$before, and the kernel does not take $value: $REASON"
    elif ! read_target "$kind" "$target" || ! satisfied "${S[rule]-exact}" "$FOUND" "$want"; then
        failed "$shown" "$before, and the kernel made $FOUND of $value"
    else
        row set "$shown" "$before -> $FOUND"
    fi
}

# A login's limits are in a file, which is there until it is taken away.
change_limit() {
    local file
    file="$(limits_file "$1")"
    if read_target limits-file "$file" && remember file limits-file "$file" "$FOUND" && write_target limits-file "$file" "limit $1 $2"; then
        return 0
    fi
    failed "$file" "$REASON"
    return 1
}

failed() {
    FAILED=$((FAILED + 1))
    row FAILED "$1" "$2"
}

row() { printf '%-9s %s: %s: %s\n' "$1" "$SECTION" "$2" "${3//$'\t'/ }"; }

main "$@"
