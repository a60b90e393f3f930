#!/bin/sh
# In the build stage, after the last install: what the environment in /opt/venv is made of, and its byte code.
set -eu
mkdir -p /opt/venv/share
cp check_imports.py /opt/venv/share/
/opt/build/bin/cyclonedx-py environment --output-reproducible --of JSON -o /opt/venv/share/sbom.cdx.json /opt/venv/bin/python
cd /opt/venv/lib/python3*/site-packages
# The libraries' own tests and headers, and the parts of Arrow that only talk to other systems: nothing that runs here
# reads them, and they are a tenth of the bytes. torch's and numpy's headers stay for who compiles.
find . -depth -type d \( -name tests -o -path ./pyarrow/include -o -path ./pyarrow/src \) ! -path './torch/*' \
    -exec rm -rf {} +
rm -f pyarrow/*flight* pyarrow/*substrait*
# By hash and not by date: equal sources give equal bytes. Some libraries carry templates that are no Python.
/opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash . > /dev/null || true
