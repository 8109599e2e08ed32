#!/usr/bin/env bash
# Says how the host is set for the relay, setting by setting: found, wanted, and why. Changes nothing.
# Exit status: 0 all is as wanted (or cannot exist here), 1 something differs, 2 wrong use.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<END
check.sh [SECTION …]          without a section: all of them: $(sections | xargs)
  --link ${SPEEDS[*]}    the speed it is to be fit for (10g)
  --device NAME               a network device; again for another (all cards)
  --cores LIST                the cores of the relay, as in 0-3,6 (all)
  --why                       reasons, symptoms, gains and sources of all settings, not only of those that differ
  --settings FOLDER           other settings than those beside this script
  --root FOLDER               look at a tree of files instead of this machine
END
}

DIFFER=0

main() {
    parse "$@"
    [ ${#SECTIONS[@]} -gt 0 ] || mapfile -t SECTIONS < <(sections)
    each_setting check
    echo
    if [ "$DIFFER" -eq 0 ]; then echo "all is as wanted at $LINK"; else echo "$DIFFER of the settings differ from what is wanted at $LINK"; fi
    [ "$DIFFER" -eq 0 ]
}

check() {
    local kind target want rule reason='' seen='' state='not here' found=()
    if reason="$(lacks)"; then
        row 'not here' "$reason"
        return
    fi
    [ -n "$(wanted)" ] || return
    rule="${S[rule]-exact} "
    case "$rule" in exact* | mask*) rule='' ;; esac
    rule="${rule/-/ }"
    reason="nothing of it on this machine"
    while IFS='|' read -r kind target want; do
        if ! read_target "$kind" "$target"; then
            reason="$REASON"
            continue
        fi
        found+=("$FOUND")
        if ! satisfied "${S[rule]-exact}" "$FOUND" "$want"; then
            if [ "$state" = differs ] && [ "$seen" != "$want" ]; then want="$(wanted)"; fi
            state=differs seen="$want"
        elif [ "$state" != differs ]; then
            state=ok
        fi
    done < <(targets)
    case "$state" in
        'not here') row "$state" "$reason" ;;
        ok) row ok "$(tally "${found[@]}")" ;;
        differs)
            row differs "found $(tally "${found[@]}"), wanted $rule$seen"
            ;;
    esac
}

row() {
    printf '%-9s %-42s %s\n' "$1" "$SECTION/${S[name]}" "$2"
    if [ "$1" = differs ]; then DIFFER=$((DIFFER + 1)); fi
    if [ "$1" = differs ] || [ -n "$ALL_WORDS" ]; then words why without hand gain; fi
    if [ -n "$ALL_WORDS" ]; then words scope source; fi
}

words() {
    local key
    for key in "$@"; do
        if [ -n "${S[$key]-}" ]; then printf '%-9s   %s: %s\n' '' "$key" "${S[$key]}"; fi
    done
}

# Values that stand there more than once are counted.
tally() {
    printf '%s\n' "$@" | tr '\t' ' ' | sort | uniq -c | while read -r count value; do
        [ -n "$value" ] || value=nothing
        if [ "$count" -gt 1 ]; then echo "$value ($count times)"; else echo "$value"; fi
    done | paste -sd ';' | sed 's/;/, /g'
}

main "$@"
