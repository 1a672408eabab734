"""The web server's worker: a node of the cluster for as long as it runs.

With Gunicorn's --preload this runs before the fork: then start the control in
`post_worker_init`, as in gunicorn_conf.py.
"""

import os

from django.apps import apps
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()
apps.get_app_config("jobs").control.start()  # stops by itself at the worker's exit
