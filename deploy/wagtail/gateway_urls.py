"""The site's URLs, and its static files and uploads.

Django serves files of its own accord only with DEBUG on, which has no place behind a gateway. For one
small site this is enough; a busy one lets its web server or object store answer these two.
"""

from django.conf import settings
from django.urls import path
from django.views.static import serve

from .urls import urlpatterns as site

urlpatterns = [
    path("static/<path:path>", serve, {"document_root": settings.STATIC_ROOT}),
    path("media/<path:path>", serve, {"document_root": settings.MEDIA_ROOT}),
    *site,
]
