#!/usr/bin/env bash
# The web page in a real headless Chromium before a real `hybra serve`: bash tests/browser/run.sh
# Needs Chromium ($CHROMIUM, or `chromium`, or `google-chrome`) and Python 3; says SKIPPED without.
# $HYBRA_BIN is the program under test [target/debug/hybra, built here if absent];
# $HYBRA_SHOTS a folder for screenshots [none].
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
    printf '%s\n' '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!' \
        "SKIPPED (browser test): $1" \
        '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!'
    exit 0
}
chromium=${CHROMIUM:-$(command -v chromium || command -v google-chrome || true)}
[ -n "$chromium" ] || skip 'Chromium is not installed; the web page was NOT checked.'
command -v python3 >/dev/null || skip 'Python 3 is not installed; the web page was NOT checked.'
if [ -z "${HYBRA_BIN:-}" ]; then
    cargo build --bin hybra
    HYBRA_BIN=${CARGO_TARGET_DIR:-target}/debug/hybra
fi
exec python3 tests/browser/page.py "$HYBRA_BIN" "$chromium" "${HYBRA_SHOTS:-}"
