#!/usr/bin/env bash
# From nothing to a Wagtail site that waits behind the gateway: deploy/wagtail/setup.sh DIR
#
# DIR/venv         Python packages, as requirements.txt pins them
# DIR/site         the site: its code, database, uploads
# DIR/gateway.env  GATEWAY_SECRET, made once, for the gateway and the site
#
# Run again, it only does what is missing or out of date. Needs python3 (3.10 or later) with venv.
set -euo pipefail
umask 077

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
site=$dir/site
python=$dir/venv/bin/python

step() { printf '%s\n' "wagtail: $*"; }

# A newer requirements.txt wants its packages installed and its static files collected again.
wanted=$(sha256sum <"$here/requirements.txt")
installed=$(cat "$dir/venv/installed" 2>/dev/null || true)

if [ ! -x "$python" ]; then
    step "virtual environment"
    python3 -m venv "$dir/venv"
fi
if [ "$installed" != "$wanted" ]; then
    step "packages"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi
if [ ! -e "$site/manage.py" ]; then
    step "site"
    # In a folder of its own first: one that was interrupted half-way must not look complete.
    rm -rf "$dir/site.new" && mkdir "$dir/site.new"
    "$dir/venv/bin/wagtail" start legacy "$dir/site.new" >/dev/null
    mv -T "$dir/site.new" "$site"
fi

step "settings and identity"
cp "$here/gateway_settings.py" "$site/legacy/settings/gateway.py"
cp "$here/../django/portcullis_identity.py" "$here/gateway_urls.py" "$site/legacy/"
cp "$here/gunicorn_conf.py" "$site/"
random_hex() { "$python" -c 'import secrets; print(secrets.token_hex(32))'; }
[ -s "$site/secret_key" ] || random_hex >"$site/secret_key"
[ -s "$dir/gateway.env" ] || printf 'GATEWAY_SECRET=%s\n' "$(random_hex)" >"$dir/gateway.env"

cd "$site"
export DJANGO_SETTINGS_MODULE=legacy.settings.gateway
step "database"
"$python" manage.py migrate --verbosity 0
if [ "$installed" != "$wanted" ] || [ ! -d static ]; then
    step "static files"
    "$python" manage.py collectstatic --noinput --verbosity 0
    printf '%s\n' "$wanted" >"$dir/venv/installed"
fi
step "users"
PYTHONPATH=$site "$python" "$here/seed.py"
step "ready in $dir"
