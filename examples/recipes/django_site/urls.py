"""One page, which tells who works."""

import os

from django.apps import apps
from django.http import JsonResponse
from django.urls import path


def index(request):
    primary = apps.get_app_config("jobs").control.cluster.primary_node
    return JsonResponse({"pid": os.getpid(), "primary": primary and primary.name})


urlpatterns = [path("", index)]
