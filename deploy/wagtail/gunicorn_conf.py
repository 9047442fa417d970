"""How gunicorn serves the site: `gunicorn -c gunicorn_conf.py legacy.wsgi`, in the site's folder."""

import os

# Loopback only: whoever can reach this port has gone round the gateway.
bind = os.environ.get("CMS_LISTEN", "127.0.0.1:8000")
workers = 1
threads = 4
raw_env = ["DJANGO_SETTINGS_MODULE=legacy.settings.gateway"]

# From a peer in `forwarded_allow_ips` (by default loopback, so the gateway) gunicorn takes a request
# header SCRIPT_NAME and cuts its value off the path: `/documents/admin/users/` with
# `SCRIPT_NAME: /documents` would be judged as /documents/* and served as /admin/users/. The gateway removes
# that header, and the two lines below each close the same hole on this side.
forwarded_allow_ips = ""
forwarder_headers = ""
# What WSGI cannot tell apart (X_Auth_User from X-Auth-User) is dropped. The default, and important here.
header_map = "drop"
