#!/bin/sh
# In the build stage, after an install: `sh finish.sh libraries`, then `sh finish.sh tuneport`.
set -eu
site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

compile() { # by hash and not by date: equal sources give equal bytes; some libraries carry templates that are no Python
    (cd "$site" && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode "$@" >/dev/null) || true
}

case $1 in
libraries)
    # Their own tests, and what of Arrow talks to its own servers: nothing that runs here reads them.
    cd "$site"
    find . -depth -type d \( -name tests -o -path ./pyarrow/include -o -path ./pyarrow/src \) ! -path './torch/*' \
        -exec rm -rf {} +
    rm -f pyarrow/*flight*
    rm -rf torch/test torch/bin/test_*
    compile unchecked-hash .
    ;;
tuneport)
    compile checked-hash pipelines steps tuneport # somebody may put a newer file in its place
    mkdir -p /opt/venv/share
    cp images/check_imports.py /opt/venv/share/
    /opt/build/bin/cyclonedx-py environment --output-reproducible --of JSON -o /opt/venv/share/sbom.cdx.json \
        /opt/venv/bin/python
    ;;
esac
