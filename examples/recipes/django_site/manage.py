"""Run the jobs of a Django project once, although it runs on every host.

    cd examples/recipes/django_site
    export PYTHONPATH=..            # where scheduler.py is
    python manage.py runjobs        # as often as you like: one of them works
    gunicorn --workers 8 wsgi       # or inside the web server's workers

The control is made in jobs/apps.py; the command and wsgi.py start it. So `migrate`,
`shell` and the tests join no cluster.
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    execute_from_command_line(sys.argv)
