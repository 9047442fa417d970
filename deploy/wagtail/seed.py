"""Makes the three users and what they may do. Run in the site's folder; changes nothing the second time.

The users have no password here: they sign in at the gateway, and Wagtail knows them by name.
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "legacy.settings.gateway")

import django

django.setup()

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from wagtail.models import GroupPagePermission, Page

USERS = [
    # name, first name, last name, groups, superuser
    ("vera", "Vera", "Viewer", [], False),
    ("eddie", "Eddie", "Editor", ["Editors"], False),
    ("sam", "Sam", "Superadmin", [], True),
]

# Wagtail's Editors may write pages and upload images but not publish; here they publish, too.
editors = Group.objects.get(name="Editors")
GroupPagePermission.objects.get_or_create(
    group=editors,
    page=Page.get_first_root_node(),
    permission=Permission.objects.get(content_type__app_label="wagtailcore", codename="publish_page"),
)

for name, first, last, groups, superuser in USERS:
    user, created = get_user_model().objects.get_or_create(
        username=name,
        defaults={
            "email": f"{name}@example.org",
            "first_name": first,
            "last_name": last,
            "is_superuser": superuser,
            "is_staff": superuser,
        },
    )
    if created:
        user.set_unusable_password()
        user.save()
        user.groups.set(Group.objects.filter(name__in=groups))
