#!/usr/bin/env bash
# Puts back what was there before the first apply.sh, in the order in which it was changed; what cannot be put back stays in the record.
# Exit status: 0 all is back, 1 something is not, each told, 2 wrong use, nothing touched.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<END
revert.sh                     puts back all that apply.sh has changed
  --dry-run                   say what would be put back, change nothing
  --state FOLDER              where the record is kept (/var/lib/zhwkprox-tuning)
  --root FOLDER               work on a tree of files instead of this machine
END
}

LEFT=()

main() {
    parse "$@"
    [ ${#SECTIONS[@]} -eq 0 ] || wrong_use "takes no section: it puts back all that is in the record"
    if [ ! -e "$(record)" ]; then
        echo "nothing to put back: there is no $(record)"
        return 0
    fi
    [ -n "$DRY_RUN" ] || begin_changes
    local scope kind target value
    while IFS='|' read -r -u 8 scope kind target value; do
        case "$scope" in
            boot) ;;
            host | file | "$(network)") put_back "$scope" "$kind" "$target" "$value" ;;
            *) keep "$scope|$kind|$target|$value" "of another network namespace: run this there" ;;
        esac
    done 8<"$(record)"
    [ -n "$DRY_RUN" ] || write_record
    [ ${#LEFT[@]} -eq 0 ]
}

put_back() {
    local kind="$2" target="$3" value="$4" line="$1|$2|$3|$4" shown
    shown="$(label "$2" "$3")"
    if ! read_target "$kind" "$target"; then
        # A card that was pulled out, an interrupt that is no more: it comes back as the kernel makes it.
        row gone "$shown" "$REASON"
    elif is_back "$kind" "$value"; then
        row 'as it was' "$shown" "$value"
    elif [ -n "$DRY_RUN" ]; then
        row 'would set' "$shown" "$FOUND -> $value"
    elif ! write_target "$kind" "$target" "$value"; then
        keep "$line" "the kernel does not take $value: $REASON"
    elif read_target "$kind" "$target" && is_back "$kind" "$value"; then
        row back "$shown" "$value"
    else
        keep "$line" "the kernel made $FOUND of $value"
    fi
}

is_back() {
    if [ "$1" = qdisc ]; then [ -z "$SET_BY_SOMEBODY" ]; else [ "$FOUND" = "$2" ]; fi
}

keep() {
    local words
    IFS='|' read -ra words <<<"$1"
    LEFT+=("$1")
    row FAILED "$(label "${words[1]}" "${words[2]}")" "$2"
}

write_record() {
    if [ ${#LEFT[@]} -eq 0 ]; then
        rm -f "$(record)"
    else
        { echo "boot|$(boot_id)"; printf '%s\n' "${LEFT[@]}"; } >"$(record).new" && mv "$(record).new" "$(record)"
        echo "${#LEFT[@]} not put back, see above; they stay in $(record)"
    fi
}

row() { printf '%-9s %s: %s\n' "$1" "$2" "${3//$'\t'/ }"; }

main "$@"
