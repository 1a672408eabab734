"""The least that Django asks for."""

SECRET_KEY = "your own"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["jobs.apps.JobsConfig"]
ROOT_URLCONF = "urls"
USE_TZ = True
