"""Of `helm test`: whether the launcher may do what it does, and its user may write to the shared volume."""

import json
import os
import sys
import tempfile

from kubernetes import client, config

config.load_config()
access = client.AuthorizationV1Api()
missing = []
for rule in json.loads(os.environ["RULES"]):
    for verb in rule["verbs"]:
        group, (resource, _, subresource) = rule["apiGroups"][0], rule["resources"][0].partition("/")
        asked = {"namespace": os.environ["NAMESPACE"], "verb": verb, "group": group, "resource": resource}
        review = {"spec": {"resourceAttributes": {**asked, "subresource": subresource}}}
        if not access.create_self_subject_access_review(review).status.allowed:
            missing.append(f"{verb} {rule['resources'][0]} {group}".rstrip())
if missing:
    sys.exit("the launcher may not: " + ", ".join(missing))
print("the launcher has its rights")
if shared := os.environ.get("SHARED"):
    try:
        tempfile.TemporaryFile(dir=shared).close()
    except OSError as e:
        sys.exit(f"user {os.getuid()} cannot write to the shared volume: {e}")
    print("the shared volume can be written to")
