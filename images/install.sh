#!/bin/sh
# In the build stage: install what an image holds, by the digests of its files: `sh install.sh base|trainer|deepspeed`,
# after which pip's own options may follow. HASHES=no: by constraints.txt alone, for files that are others than PyPI's.
set -eu
image=$1
shift
case $image in
base) extras="s3 gcs azure" ;;
trainer) extras="s3 gcs azure train benchmark onnx trackers launch mlflow-server" ;;
deepspeed) extras="s3 gcs azure train benchmark onnx trackers launch mlflow-server deepspeed" ;;
esac
if [ "$HASHES" = no ]; then
    # shellcheck disable=SC2086 # one argument an extra
    python3 images/requirements.py $extras >requirements.txt
    [ "$image" = base ] || cat images/compile.txt >>requirements.txt
    set -- "$@" -c constraints.txt -r requirements.txt
else
    set -- "$@" --require-hashes -r "images/requirements-$image.txt"
fi
/opt/build/bin/pip --python /opt/venv/bin/python install --no-compile "$@"
